"""Bad input, typed as a user would type it: one sentence that names file and key or row, before any job starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from study import PROMPTS, ROOT, SMALL, snakemake, write_prompts, write_study

HEADER = "prompt\tset\ttext\n"
REFERENCE = ROOT / "models/reference"
Edit = Callable[[Path], None]


def config(**sections: object) -> Edit:
    return lambda folder: (folder / "config.yaml").write_text(yaml.safe_dump(SMALL | sections), encoding="utf-8")


def model(**settings: object) -> Edit:
    return config(models={"m": {"source": str(REFERENCE)} | settings})


def config_file(content: str | bytes) -> Edit:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "config.yaml").write_bytes(content)


def prompts(content: str | bytes) -> Edit:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "prompts.tsv").write_bytes(content)


def local_model(edit: Callable[[Path], object]) -> Edit:
    """A copy of the reference model with something wrong with it."""

    def change(folder: Path) -> None:
        shutil.copytree(REFERENCE, folder / "mine")
        edit(folder / "mine")
        config(models={"mine": {"source": "mine"}})(folder)

    return change


def add_shard_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SMALL_TEXT = yaml.safe_dump(SMALL)
CASES: dict[str, tuple[Edit, list[str]]] = {
    # config.yaml as a file
    "no configuration": (lambda folder: (folder / "config.yaml").unlink(), ["config.yaml", "no such file"]),
    "empty configuration": (config_file(""), ["config.yaml", "keys and values"]),
    "configuration is a list": (config_file("- a\n- b\n"), ["config.yaml", "keys and values"]),
    "YAML never closed": (config_file("models: {a: b\nprompts: [\n"), ["config.yaml", "line 2"]),
    "YAML with a tab": (config_file("models:\n\ta: 1\n"), ["config.yaml", "line 2"]),
    "YAML key twice": (config_file(SMALL_TEXT + "prompts: other.tsv\n"), ["config.yaml", "'prompts'", "second"]),
    "model twice": (config_file("models:\n  a: {source: x}\n  a: {source: y}\n"), ["line 3", "'a'", "second"]),
    "configuration not UTF-8": (config_file(b"prompts: caf\xe9\n"), ["config.yaml", "UTF-8"]),
    "configuration with NUL": (config_file("prompts: a\0b\n"), ["config.yaml"]),
    # its keys
    "unknown key": (config(colour=1), ["config.yaml", "'colour'"]),
    "unknown key in a section": (config(sinks={"treshold": 0.9}), ["'treshold'", "in sinks"]),
    "unknown key of a model": (model(sauce=1), ["'sauce'", "in models.m"]),
    "unknown key of a preset": (
        config(simulation={"toy": {"layers": 2, "heads": 2, "lengths": [5], "sead": 1}}),
        ["'sead'", "in simulation.toy"],
    ),
    "unknown key of the benchmark": (config(benchmark={"length": [24]}), ["'length'", "in benchmark"]),
    "section is a number": (config(capture=3), ["capture", "object"]),
    "no models": (config(models={}), ["models", "empty"]),
    "models is a list": (config(models=["a"]), ["models", "object"]),
    "model without a source": (config(models={"m": {}}), ["models.m", "'source'"]),
    "model name with a slash": (config(models={"a/b": {"source": "x"}}), ["'a/b'", "letter"]),
    "model name that climbs": (config(models={"..": {"source": "x"}}), ["'..'", "letter"]),
    "model name with a space": (config(models={"a b": {"source": "x"}}), ["'a b'", "letter"]),
    "model name that is a number": (config(models={8: {"source": "x"}}), ["8", "letter"]),
    "threshold above 1": (config(sinks={"threshold": 1.5}), ["sinks.threshold", "at most 1"]),
    "threshold 0": (config(sinks={"threshold": 0}), ["sinks.threshold", "greater than 0"]),
    "threshold is text": (config(sinks={"threshold": "0.9"}), ["sinks.threshold", "number"]),
    "threshold not tabulated": (config(sinks={"threshold": 0.5}), ["0.5", "sinks.thresholds"]),
    "no prompts per job": (config(capture={"prompts_per_job": 0}), ["capture.prompts_per_job", "at least 1"]),
    "seed below 0": (config(statistics={"seed": -1}), ["statistics.seed", "at least 0"]),
    "too few repeats": (config(benchmark={"repeats": 1}), ["benchmark.repeats", "at least 3"]),
    "unknown strategy": (config(benchmark={"strategies": ["magic"]}), ["benchmark.strategies", "reuse"]),
    "unknown dtype": (model(dtype="int8"), ["models.m.dtype", "float32"]),
    # files that it names
    "no such prompts": (config(prompts="missing.tsv"), ["prompts", "'missing.tsv'"]),
    "no such text": (config(benchmark={"text": "missing.txt"}), ["benchmark.text", "'missing.txt'"]),
    "no such directory": (model(source="./none"), ["models.m.source", "'./none'"]),
    "directory without a model": (model(source=str(ROOT / "docs")), ["models.m.source", "config.json"]),
    "broken config.json": (local_model(lambda f: (f / "config.json").write_text("{")), ["models.mine", "config.json"]),
    "no tokenizer": (
        local_model(lambda f: [p.unlink() for p in f.glob("tokenizer*")]),
        ["models.mine", "tokenizer.json"],
    ),
    "no weights": (local_model(lambda f: (f / "model.safetensors").unlink()), ["models.mine", "safetensors"]),
    "weights cut short": (
        local_model(lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9])),
        ["models.mine", "model.safetensors", "cut short"],
    ),
    "a shard of the weights is missing": (local_model(add_shard_index), ["models.mine", "00001-of-00002"]),
    # the prompts
    "no columns": (prompts(""), ["prompts.tsv", "'prompt'"]),
    "a column is missing": (prompts("prompt\tset\nhello\tshort\n"), ["prompts.tsv", "'text'"]),
    "no rows": (prompts(HEADER), ["prompts.tsv", "no prompts"]),
    "a prompt twice": (lambda folder: write_prompts(folder, [PROMPTS[0]] * 2), ["prompts.tsv", "'hello'", "twice"]),
    "empty text": (prompts(HEADER + "a\tshort\t\n"), ["prompts.tsv", "'a'", "empty"]),
    "only white space": (prompts(HEADER + "a\tshort\t \u00a0\u2003 \n"), ["prompts.tsv", "'a'", "empty"]),
    "a NUL byte": (prompts(HEADER + "a\tshort\thel\0lo\n"), ["prompts.tsv", "'a'", "NUL"]),
    "prompts not UTF-8": (prompts(HEADER.encode() + b"a\tshort\tcaf\xe9\n"), ["prompts.tsv", "line 2", "UTF-8"]),
    "an unquoted tab": (prompts(HEADER + "a\tshort\tone\ttwo\n"), ["prompts.tsv", "line 2", "quote"]),
    "a quote never closed": (prompts(HEADER + 'a\tshort\t"one\n'), ["prompts.tsv", "line 2", "quotes"]),
    "an id with a slash": (prompts(HEADER + "a/b\tshort\tone\n"), ["prompts.tsv", "line 2", "'a/b'"]),
    "an id of combining characters": (prompts(HEADER + "e\u0301\tshort\tone\n"), ["prompts.tsv", "line 2"]),
    "a right-to-left set": (prompts(HEADER + "a\t\u202eset\tone\n"), ["prompts.tsv", "line 2", "set"]),
    "a set called all": (prompts(HEADER + "a\tall\tone\n"), ["prompts.tsv", "line 2", "'all'"]),
    # the folder
    "results is a file": (lambda folder: (folder / "results").touch(), ["results", "not a directory"]),
}


def refused(folder: Path, *arguments: str) -> str:
    """The one sentence with which Snakemake ends in `folder`."""
    result = snakemake(folder, *arguments)
    text = result.stdout + result.stderr
    assert result.returncode != 0, text
    assert "Traceback" not in text, text
    assert '  File "' not in text, text
    (sentence,) = (line for line in text.splitlines() if line.startswith("error: "))
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_before_any_job(name, tmp_path):
    edit, mentions = CASES[name]
    edit(write_study(tmp_path))
    sentence = refused(tmp_path)
    for mention in mentions:
        assert mention in sentence
    assert sentence.endswith(".")
    assert not (tmp_path / "logs").exists()


def test_there_are_at_least_forty_cases():
    assert len(CASES) >= 40


def test_a_key_given_on_the_command_line_is_checked_too(tmp_path):
    (write_study(tmp_path) / "other.yaml").write_text("colour: 1\n")
    assert "other.yaml and config.yaml: unknown key 'colour'" in refused(
        tmp_path, "-n", "--configfile", str(tmp_path / "other.yaml")
    )
