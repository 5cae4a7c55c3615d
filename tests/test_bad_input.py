"""Bad input, typed as a user would type it: Snakemake ends in one sentence, before any job starts.

One case for each check that the workflow makes; its other cases are in test_config, test_files and test_prompts.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from study import PROMPTS, SMALL, snakemake, write_prompts, write_study


def config(**sections: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.yaml").write_text(yaml.safe_dump(SMALL | sections), encoding="utf-8")


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no configuration": (lambda folder: (folder / "config.yaml").unlink(), ["config.yaml", "no such file"]),
    "an anchor in itself": (
        lambda folder: (folder / "config.yaml").write_text("models: &a\n  b: *a\n"),
        ["config.yaml", "line 1", "holds itself"],
    ),
    "unknown key": (config(sinks={"treshold": 0.9}), ["config.yaml: unknown key 'treshold' in sinks"]),
    "a prompt twice": (lambda folder: write_prompts(folder, [PROMPTS[0]] * 2), ["prompts.tsv", "'hello'", "twice"]),
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
    assert sentence.endswith("."), sentence
    return sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_before_any_job(name, tmp_path):
    edit, mentions = CASES[name]
    edit(write_study(tmp_path))
    sentence = refused(tmp_path)
    for mention in mentions:
        assert mention in sentence
    assert not (tmp_path / "logs").exists()


def test_a_key_of_a_file_or_of_the_command_line_is_reported_as_such(tmp_path):
    (write_study(tmp_path) / "other.yaml").write_text("colour: 1\n")
    overlay = ["-n", "--configfile", str(tmp_path / "other.yaml")]
    assert "error: other.yaml: unknown key 'colour'" in refused(tmp_path, *overlay)
    assert "error: --config: unknown key 'foo'" in refused(tmp_path, "-n", "--config", "foo=1")


def test_models_of_an_overlay_take_the_place_of_the_others(tmp_path):
    overlay = {"models": {"mine": SMALL["models"]["untrained"]}, "simulation": {}}
    (write_study(tmp_path) / "other.yaml").write_text(yaml.safe_dump(overlay))
    done = snakemake(tmp_path, "-n", "--configfile", str(tmp_path / "other.yaml"))
    assert done.returncode == 0, done.stderr
    assert "results/captures/mine/00000.h5" in done.stdout + done.stderr
    assert "reference" not in done.stdout + done.stderr
    assert "tiny-8b" not in done.stdout + done.stderr
