"""The command line, in process, on the toy."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sinkstudy.attention import Plan, optimized
from sinkstudy.capture import sink_mass
from sinkstudy.cli import app, main
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import read_prompts

TOY = Path("models/reference").resolve()
TEXTS = ["Hello world", "one two three four five six seven"]


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def said(capsys, monkeypatch, *arguments: object) -> str:
    """The sentence with which the command refuses."""
    monkeypatch.setattr("sys.argv", ["sinkstudy", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    return sentence


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_look_needs_no_configuration_and_scores_as_the_forward_pass_does(elsewhere):
    output = run("look", *TEXTS, "--model", TOY, "--csv", "scores.csv", "--html", "look.html", "--threshold", 0.5)
    scores = pd.read_csv("scores.csv")
    loaded = load_model(ModelSpec(str(TOY)))
    for prompt, text in zip(("text_1", "text_2"), TEXTS, strict=True):
        ids = tokenize(loaded, text, prompt)
        expected = sink_mass(loaded.model, torch.tensor(ids)).double().mean(-1).flatten()
        found = scores[scores["prompt"] == prompt]["sink_score"].to_numpy()
        assert found == pytest.approx(expected.numpy(), abs=1e-6)
        sinks = int((expected >= 0.5).sum())
        assert f"sinks at 0.5: {sinks} of {len(found)} heads" in output
        assert f"({len(ids)} tokens)" in output
    assert '"text_2"' in (elsewhere / "look.html").read_text(encoding="utf-8")
    assert {path.name for path in elsewhere.iterdir()} == {"scores.csv", "look.html"}


def test_look_says_where_the_sinks_are_and_how_strong_the_first_token_is(elsewhere):
    lines = run("look", TEXTS[1], "--model", TOY).splitlines()
    loaded = load_model(ModelSpec(str(TOY)))
    loaded.model.set_attn_implementation("eager")
    ids = tokenize(loaded, TEXTS[1], "text")
    with torch.inference_mode():
        seen = loaded.model(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    (heading,) = (i for i, line in enumerate(lines) if line.strip().startswith("layer "))
    for layer, line in enumerate(lines[heading + 1 : heading + 1 + len(seen.attentions)]):
        norms = seen.hidden_states[layer][0].norm(dim=-1)
        assert float(line.split()[-1]) == pytest.approx((norms[0] / norms[1:].quantile(0.5)).item(), abs=0.051)
    maps = torch.cat(seen.attentions).flatten(0, 1).double()  # (head, query, key)
    n = len(ids)
    received = torch.stack([maps[:, key + 1 :, key].mean(1) for key in range(n - min(max(16, n // 4), n // 2))], 1)
    (first,) = (line for line in lines if line.strip().startswith("token 1 "))
    assert f": {int((received.argmax(1) == 0).sum())} of {len(maps)} heads" in first
    assert any(f"({int((received.amax(1) >= 0.3).sum())} of {len(maps)} with 0.3 or more)" in line for line in lines)


def test_look_takes_the_models_of_the_configuration_here_and_settings_over_theirs(elsewhere):
    (elsewhere / "config.yaml").write_text(f"models: {{mine: {{source: {TOY}}}, drawn: {{source: {TOY}}}}}")
    assert run("look", "Hello world").startswith("mine: ")
    output = run("look", "Hello world", "--model", "drawn", "--bos", "always", "--dtype", "bfloat16")
    assert "bfloat16, bos always" in output.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["look", "x"], "there is no config.yaml here that names a model; give one with --model."),
        (["look", "x", "--model", "./nowhere"], "models.model.source is './nowhere', but there is no such directory"),
        (["look", "x", "--model", TOY, "--bos", "twice"], "models.model.bos is 'twice', but must be one of auto"),
        (["look", "x", "--model", "pypi:a==1"], "models.model.gguf is missing, but a source pypi:NAME==VERSION needs"),
        (["check", TOY / "config.json"], "unknown key"),
        (["plan", TOY, TOY / "README.md", "--window", "100000"], "work from 341"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_sentence(elsewhere, capsys, monkeypatch, arguments, sentence):
    assert sentence in said(capsys, monkeypatch, *arguments)


def test_a_plan_for_a_text_of_ones_own_keeps_its_price_and_runs(elsewhere):
    sentence = "the river runs past the old mill at noon"
    words = " ".join(f"{word} {i % 7}" for i, word in enumerate(sentence.split() * 20))
    Path("text.txt").write_text(words, encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", str(TOY), "text.txt", "--window", "8", "--kl", "0.01"])
    assert done.exit_code == 0, done.output
    found = Plan.load("plan.json")
    assert found.replaced > 0
    assert (found.window, found.policy) == (8, "budget")
    loaded = load_model(ModelSpec(str(TOY)))
    ids = tokenize(loaded, words, "text")
    check = torch.tensor([ids[len(ids) - len(ids) // 2 :]])
    with torch.inference_mode():
        before = loaded.model(check).logits.double().log_softmax(-1)
        with optimized(loaded.model, found):
            after = loaded.model(check).logits.double().log_softmax(-1)
    price = (before.exp() * (before - after)).sum(-1).mean().item()
    assert 0 < price <= 0.01
    assert f"a KL of {price:.2g} nats per token" in done.stderr


def test_check_says_what_the_study_consists_of():
    output = run("check", "config.yaml", "config/quick.yaml").splitlines()
    prompts = len(read_prompts(Path("config/quick_prompts.tsv")))
    assert output[0] == "config.yaml and config/quick.yaml: nothing is wrong."
    assert "  model untrained: models/reference, random weights of seed 0" in output
    assert output[-1].startswith(f"  {prompts} prompts of ")


def test_help_teaches():
    assert "Default: the first of ./config.yaml" in " ".join(run("look", "--help").replace("│", " ").split())
