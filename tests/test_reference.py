"""The shipped reference model is what its card says, and its training task what it claims."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from arithmetic import roundings
from tiny import eager_maps

from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec
from sinkstudy.reference.card import model_card
from sinkstudy.reference.task import BOS, COPY, RECALL, chances_after, sample, token_ids
from sinkstudy.reference.train import Recipe, evaluate, save, train
from sinkstudy.stats.scores import excess_score, null_score

FOLDER = Path("models/reference")
HELD_OUT = Path("texts/heldout.txt").read_text(encoding="utf-8")
TRAINING = Path("texts/training.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelSpec(source=str(FOLDER), device="cpu"))


def test_it_has_sinks_and_heads_that_are_none_on_english_at_64_tokens(loaded):
    windows = [HELD_OUT[i : i + 63] for i in range(0, len(HELD_OUT) - 62, 63)]
    ids = torch.tensor([loaded.tokenizer(text)["input_ids"] for text in windows])
    assert ids.shape[1] == 64
    with torch.inference_mode():
        masses = torch.cat([eager_maps(loaded.model, some)[..., 0] for some in ids.split(50)], dim=1)
    score = masses.double().mean((1, 3)).numpy()  # (layer, head)
    excess = excess_score(score, null_score(64))
    assert score.shape[0] >= 3
    assert score.size >= 16
    assert (score >= 0.9).sum() >= 4
    assert (score >= 0.9).mean() >= 0.15
    assert (excess < 0.2).mean() >= 0.20
    card = (FOLDER / "README.md").read_text()
    stated = np.array([row.split() for row in re.findall(r"^\| \d+ \| ([\d. ]+) \|$", card, re.M)], float)
    assert stated.shape == score.shape
    # Half a unit of the second decimal, and a rounding for each number in the widest sum, which is the hidden size.
    shown = 0.005 + roundings(loaded.model.config.hidden_size)
    np.testing.assert_allclose(stated, score, rtol=0, atol=shown)
    sinks, sleepers = (score >= 0.9).sum(), (excess < 0.2).sum()
    assert f"{sinks} of {score.size} heads\n({sinks / score.size:.1%}) score 0.9 or more, {sleepers} " in card


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10e6


def test_commands_repeat_the_character_they_point_at():
    tokens, _ = sample(chances_after(TRAINING, 0.3, 0.01), np.random.default_rng(0), 40, 80)
    offsets = {int(t): j for j, t in enumerate(token_ids(COPY), start=1)}
    recalls = set(token_ids(RECALL).tolist())
    copied = recalled = 0
    for row in tokens.tolist():
        assert row[0] == BOS
        assert BOS not in row[1:]
        for i in range(1, len(row) - 1):
            if row[i] in offsets and i - offsets[row[i]] >= 1:
                assert row[i + 1] == row[i - offsets[row[i]]]
                copied += 1
            elif row[i] in recalls and row.index(row[i]) < i:
                assert row[i + 1] == row[row.index(row[i]) + 1]
                recalled += 1
    assert min(copied, recalled) > 50


def test_tokens_are_drawn_from_the_distributions_given_with_them():
    tokens, truth = sample(chances_after(TRAINING, 0.25, 0.05), np.random.default_rng(1), 300, 40)
    np.testing.assert_allclose(truth.sum(-1), 1)
    chances = np.take_along_axis(truth, tokens[:, 1:, None], -1)
    assert (chances > 0).all()
    # For draws from their own distributions, the mean surprise is the mean entropy, within sampling error.
    entropy = -(truth * np.log(np.where(truth > 0, truth, 1))).sum(-1)
    surprise = -np.log(chances[..., 0])
    assert surprise.mean() == pytest.approx(entropy.mean(), abs=4 * surprise.std() / surprise.size**0.5)


def test_training_lowers_the_divergence_and_writes_a_model_that_loads(tmp_path):
    recipe = replace(Recipe(), layers=2, heads=2, hidden=32, intermediate=16, tokens=24, batch=8, steps=60, warmup=5)
    model, curve = train(recipe, TRAINING, HELD_OUT[:200], every=20)
    assert curve["kl"].iloc[-1] < 0.7 * curve["kl"].iloc[0]
    save(model, curve, recipe, tmp_path)
    again = load_model(ModelSpec(source=str(tmp_path), device="cpu"))
    assert torch.equal(again.model.lm_head.weight, model.lm_head.weight)
    score = evaluate(model, HELD_OUT[:200], recipe.tokens)
    card = model_card(recipe, curve, score, model.num_parameters())
    assert f"{model.num_parameters():,} parameters" in card
    assert f"| 1 | {score[1, 0]:.2f} {score[1, 1]:.2f} |" in card
