import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from sinkstudy.errors import StudyError
from sinkstudy.models.sources import is_local
from sinkstudy.workflow.config import check_config

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
SMALLEST = {"models": {"tiny": {"source": "models/tiny"}}, "prompts": "prompts.tsv"}


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder with everything that the smallest configuration names."""
    root = tmp_path_factory.mktemp("project")
    (root / "models/tiny").mkdir(parents=True)
    for file in ("config.json", "tokenizer.json"):
        (root / "models/tiny" / file).write_text("{}")
    save_file({"weight": np.zeros(2)}, root / "models/tiny/model.safetensors")
    (root / "models/empty").mkdir()
    (root / "benchmarks").mkdir()
    for file in ("prompts.tsv", "benchmarks/heldout.txt"):
        (root / file).write_text("")
    return root


def with_key(path: str, value: Any) -> dict:
    """The smallest configuration with one key, given by its dotted path, set to `value`."""
    config: dict = copy.deepcopy(SMALLEST)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return config


def test_the_configuration_of_this_repository_passes_unchanged():
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    checked = check_config(config, SCHEMA, ROOT)
    for section, keys in config.items():
        if section not in ("models", "simulation", "prompts"):
            assert checked[section].items() >= keys.items()
    assert checked["models"].keys() == config["models"].keys()


def test_defaults_are_filled_at_every_level(project):
    toy = {"layers": 2, "heads": 3, "lengths": [5]}
    checked = check_config(with_key("simulation.toy", toy), SCHEMA, project)
    assert checked["models"]["tiny"] == {
        "source": "models/tiny",
        "revision": None,
        "dtype": "float32",
        "bos": "auto",
        "device": "auto",
        "random_weights": None,
        "trust_remote_code": False,
        "allow_pickle": False,
    }
    assert checked["prompts"] == "prompts.tsv"
    assert checked["sinks"] == {"threshold": 0.9, "thresholds": [0.3, 0.8, 0.9]}
    assert checked["capture"].items() >= {"maps_max_tokens": 128, "prompts_per_job": 16}.items()
    assert checked["statistics"] == {"bootstrap": 1000, "permutations": 1000, "seed": 0}
    assert checked["simulation"] == {"toy": toy | {"seed": 0}}
    benchmark = {"lengths": [24, 128, 512], "batches": [1], "repeats": 9, "max_tokens": None}
    assert checked["benchmark"].items() >= benchmark.items()


def test_no_default_of_the_schema_is_left_out(project):
    properties = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["properties"]
    checked = check_config(SMALLEST, SCHEMA, project)
    for section in ("sinks", "capture", "statistics", "benchmark"):
        defaults = {key: part["default"] for key, part in properties[section]["properties"].items()}
        assert checked[section] == defaults


def test_what_the_user_gave_wins_over_defaults_and_is_not_written_to(project):
    config = with_key("sinks", {"threshold": 0.5, "thresholds": [0.5]})
    before = copy.deepcopy(config)
    assert check_config(config, SCHEMA, project)["sinks"] == {"threshold": 0.5, "thresholds": [0.5]}
    assert config == before


def test_defaults_of_one_check_do_not_leak_into_the_next(project):
    check_config(SMALLEST, SCHEMA, project)["sinks"]["thresholds"].append(0.1)
    assert check_config(SMALLEST, SCHEMA, project)["sinks"]["thresholds"] == [0.3, 0.8, 0.9]


def test_checking_a_checked_configuration_changes_nothing(project):
    checked = check_config(SMALLEST, SCHEMA, project)
    assert check_config(checked, SCHEMA, project) == checked


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sinks", {"threshold": 1, "thresholds": [1]}),
        ("capture.maps_max_tokens", 0),
        ("simulation", {}),
        ("benchmark.max_tokens", 64),
        ("models.tiny.revision", "0123abc"),
        ("models.other", {"source": "owner/name"}),
        ("models", {"llama-3.1_8b": {"source": "models/tiny/"}}),
    ],
)
def test_good_values_at_the_edge_pass(project, path, value):
    check_config(with_key(path, value), SCHEMA, project)


BAD = [
    # path, value, what the message must name
    ("colour", 1, ["'colour'"]),
    ("sinks.treshold", 0.9, ["'treshold'", "in sinks"]),
    ("models.tiny.sauce", "x", ["'sauce'", "in models.tiny"]),
    ("benchmark.length", [24], ["'length'", "in benchmark"]),
    ("simulation.toy", {"layers": 2, "heads": 2, "lengths": [5], "sead": 1}, ["'sead'", "in simulation.toy"]),
    ("models", None, ["models", "object"]),
    ("models", [], ["models", "object"]),
    ("models", {}, ["models", "empty"]),
    ("models.other", None, ["models.other", "object"]),
    ("models.other", {}, ["models.other", "'source'"]),
    ("models.other", {"source": 3}, ["models.other.source", "string"]),
    ("models.other", {"source": ""}, ["models.other.source", "empty"]),
    ("models.other", {"source": "models/nothing"}, ["models.other.source", "'models/nothing'"]),
    ("models.other", {"source": "./nothing"}, ["models.other.source", "'./nothing'"]),
    ("models.other", {"source": "/nothing/here"}, ["models.other.source", "'/nothing/here'"]),
    ("models.other", {"source": "~no-such-user/x"}, ["models.other.source", "'~no-such-user/x'"]),
    ("models.other", {"source": "models/empty"}, ["models.other.source", "config.json"]),
    ("models.other", {"source": "prompts.tsv"}, ["models.other.source", "'prompts.tsv'"]),
    ("models.tiny.dtype", "int8", ["models.tiny.dtype", "float32", "bfloat16", "float16"]),
    ("models.tiny.bos", True, ["models.tiny.bos", "auto", "always", "never"]),
    ("models.tiny.device", "gpu", ["models.tiny.device", "cuda"]),
    ("models.tiny.random_weights", -1, ["models.tiny.random_weights", "0"]),
    ("models.tiny.revision", 12, ["models.tiny.revision", "string"]),
    ("models.tiny.trust_remote_code", "yes", ["models.tiny.trust_remote_code", "boolean"]),
    ("models.other", {"source": "a/b", "trust_remote_code": True}, ["models.other.trust_remote_code", "local"]),
    ("models.other", {"source": "a/b", "allow_pickle": True}, ["models.other.allow_pickle", "local"]),
    ("prompts", None, ["prompts", "string"]),
    ("prompts", "", ["prompts", "empty"]),
    ("prompts", "missing.tsv", ["prompts", "'missing.tsv'"]),
    ("prompts", "models", ["prompts", "'models'"]),
    ("sinks", None, ["sinks", "object"]),
    ("sinks.threshold", 0, ["sinks.threshold", "greater than 0"]),
    ("sinks.threshold", -1, ["sinks.threshold", "greater than 0"]),
    ("sinks.threshold", 1.5, ["sinks.threshold", "at most 1"]),
    ("sinks.threshold", "0.9", ["sinks.threshold", "number"]),
    ("sinks.threshold", True, ["sinks.threshold", "number"]),
    ("sinks.threshold", 0.5, ["sinks.threshold", "sinks.thresholds", "0.5"]),
    ("sinks.thresholds", [], ["sinks.thresholds", "empty"]),
    ("sinks.thresholds", 0.9, ["sinks.thresholds", "array"]),
    ("sinks.thresholds", [0.9, 0.9], ["sinks.thresholds"]),
    ("sinks.thresholds", [0.9, 2], ["sinks.thresholds", "at most 1"]),
    ("sinks.thresholds", [0.9, float("nan")], ["sinks.thresholds"]),
    ("capture.maps_max_tokens", -1, ["capture.maps_max_tokens", "at least 0"]),
    ("capture.maps_max_tokens", 1.5, ["capture.maps_max_tokens", "integer"]),
    ("capture.prompts_per_job", 0, ["capture.prompts_per_job", "at least 1"]),
    ("statistics.seed", -1, ["statistics.seed", "at least 0"]),
    ("statistics.bootstrap", 0, ["statistics.bootstrap", "at least 10"]),
    ("statistics.permutations", "many", ["statistics.permutations", "integer"]),
    (
        "simulation.toy",
        {"layers": 2, "heads": 2, "lengths": [5], "fitted_to": "big"},
        ["simulation.toy.fitted_to", "'big'", "tiny"],
    ),
    ("simulation.toy", {"heads": 2}, ["simulation.toy", "'layers'", "'lengths'"]),
    ("simulation.toy", {"layers": 1, "heads": 2, "lengths": [5]}, ["simulation.toy.layers", "at least 2"]),
    ("simulation.toy", {"layers": 2, "heads": 2, "lengths": []}, ["simulation.toy.lengths", "empty"]),
    ("simulation.toy", {"layers": 2, "heads": 2, "lengths": [0]}, ["simulation.toy.lengths", "at least 1"]),
    ("benchmark.text", "missing.txt", ["benchmark.text", "'missing.txt'"]),
    ("benchmark.lengths", [1], ["benchmark.lengths", "at least 2"]),
    ("benchmark.batches", [], ["benchmark.batches", "empty"]),
    ("benchmark.strategies", ["magic"], ["benchmark.strategies", "reuse", "first_value"]),
    ("benchmark.policies", "consistent", ["benchmark.policies", "array"]),
    ("benchmark.consistent_share", 0, ["benchmark.consistent_share", "greater than 0"]),
    ("benchmark.max_tokens", 0, ["benchmark.max_tokens", "at least 1"]),
    ("benchmark.repeats", 1, ["benchmark.repeats", "at least 3"]),
]


@pytest.mark.parametrize(("path", "value", "mentions"), BAD, ids=[f"{path}={value}" for path, value, _ in BAD])
def test_a_bad_value_is_refused_in_one_sentence_that_names_the_key(project, refuses, path, value, mentions):
    with refuses("config.yaml", *mentions):
        check_config(with_key(path, value), SCHEMA, project)


@pytest.mark.parametrize("key", ["models", "prompts"])
def test_a_missing_required_key_is_named(project, refuses, key):
    config = {name: value for name, value in SMALLEST.items() if name != key}
    with refuses(f"'{key}'"):
        check_config(config, SCHEMA, project)


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "", ".hidden", "-x", "{x}", "tïny", "tiny\n", 8, None])
@pytest.mark.parametrize("section", ["models", "simulation"])
def test_a_name_that_is_not_safe_in_a_path_is_refused_and_the_rule_is_told(project, refuses, section, name):
    entry = {"source": "models/tiny"} if section == "models" else {"layers": 2, "heads": 2, "lengths": [5]}
    with refuses("config.yaml", section, repr(name), "letter"):
        check_config(SMALLEST | {section: {name: entry}}, SCHEMA, project)


def test_a_whole_float_does_not_reach_code_that_counts_with_it(project):
    """JSON Schema calls YAML's 100.0 an integer, `range` does not: the check refuses it or makes it an int."""
    config = with_key("statistics.permutations", 100.0)
    with suppress(StudyError):
        assert type(check_config(config, SCHEMA, project)["statistics"]["permutations"]) is int


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("models/tiny", True),
        ("models/tiny/", True),
        ("models/not-there", True),  # beside the folder `models` it can only be a misspelt path
        ("models", True),
        ("./owner/name", True),
        ("../name", True),
        (".", True),
        ("/somewhere/else", True),
        ("~/models/x", True),
        ("a/b/c", True),
        ("owner/name", False),
        ("meta-llama/Llama-3.2-1B", False),
        ("gpt2", False),
    ],
)
def test_is_local_tells_paths_from_hub_ids(project, source, local):
    assert is_local(source, project) is local


def test_is_local_looks_from_the_given_folder_and_not_from_the_current_one(project, tmp_path, monkeypatch):
    (tmp_path / "owner/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_local("owner/name", project)
    assert is_local("owner/name", tmp_path)
