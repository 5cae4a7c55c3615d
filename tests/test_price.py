"""What replacing sinks costs where the truth is known: on the shipped model, and on planted sinks of 0.93."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import planted_config

from sinkstudy.attention import Plan, optimized
from sinkstudy.capture import sink_mass
from sinkstudy.evaluation.benchmark import windows
from sinkstudy.evaluation.policies import consistent, rest_weight
from sinkstudy.evaluation.quality import compare
from sinkstudy.models.loading import encode, load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import read_prompts
from sinkstudy.reference.planted import plant_sinks, planted_ids
from sinkstudy.stats.prefixes import prefix_scores

HELD_OUT = Path("texts/heldout.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelSpec(source="models/reference", device="cpu"))


def held_out(loaded, n):
    return windows(tokenize(loaded, HELD_OUT, "held-out"), n, 4)


def mean_scores(model, ids):
    """Sink score (layer, head), averaged over prompts (prompt, query)."""
    return np.mean([prefix_scores(sink_mass(model, one).numpy())[..., -1] for one in ids], axis=0)


def weights_of(score, heads, n):
    return {
        layer: {h: rest_weight(score[layer, [h]].astype(float), np.array([n]))[0] for h in hs}
        for layer, hs in heads.items()
    }


def heads_between(score, low, high):
    return {layer: np.flatnonzero((row >= low) & (row < high)).tolist() for layer, row in enumerate(score)}


@torch.inference_mode()
def cost(model, plan, ids):
    before = model(ids).logits
    with optimized(model, plan):
        return compare(before, model(ids).logits, ids)


@pytest.mark.parametrize("n", [24, 64, 128])
def test_consistent_sinks_of_the_reference_model_are_replaced_nearly_for_free(loaded, n):
    rows = []
    for prompt, ids in encode(
        loaded, {one.id: one.text for one in read_prompts(Path("config/quick_prompts.tsv"))}
    ).items():
        score = prefix_scores(sink_mass(loaded.model, torch.tensor(ids)).numpy())[..., -1]
        for layer, head in np.ndindex(score.shape):
            rows.append((prompt, len(ids), layer, head, score[layer, head], score[layer, head] >= 0.9))
    table = pd.DataFrame(rows, columns=["prompt", "n_tokens", "layer", "head", "sink_score", "is_sink"])
    plan = consistent([table], share=0.8, min_tokens=24, max_tokens=None)
    assert plan.replaced >= 6
    assert plan.max_tokens >= n
    quality = cost(
        loaded.model, Plan(plan.heads, "first_value_mean", rest_weight=plan.rest_weight), held_out(loaded, n)
    )
    assert quality.top1_agreement >= 0.98
    assert quality.perplexity_ratio <= 1.02


@pytest.mark.parametrize("n", [24, 64, 128])
def test_heads_of_0_99_are_their_first_value(loaded, n):
    ids = held_out(loaded, n)
    heads = heads_between(mean_scores(loaded.model, ids), 0.99, 1.01)
    assert sum(map(len, heads.values())) >= 2
    assert cost(loaded.model, Plan(heads, "first_value"), ids).kl <= 1e-3


@pytest.mark.parametrize("n", [24, 64, 128])
def test_on_the_reference_model_the_mean_of_the_rest_halves_the_cost_or_there_is_hardly_any(loaded, n):
    ids = held_out(loaded, n)
    score = mean_scores(loaded.model, ids)
    heads = heads_between(score, 0.9, 0.97)
    assert sum(map(len, heads.values())) >= 1
    first = cost(loaded.model, Plan(heads, "first_value"), ids).kl
    mean = cost(loaded.model, Plan(heads, "first_value_mean", rest_weight=weights_of(score, heads, n)), ids).kl
    assert mean <= first / 2 or max(mean, first) <= 1e-4


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("n", [24, 512])
def test_on_planted_sinks_whose_other_values_matter_it_does(n, measured):
    config = planted_config()
    planted = np.random.default_rng(0).random((4, 8)) < 0.5
    model = plant_sinks(config, planted * 0.93, n_tokens=n, output_scale=0.15)
    score = mean_scores(model, planted_ids(config, n, seed=2))
    assert score[planted].min() > 0.9
    assert score[planted].max() < 0.97
    heads = {layer: np.flatnonzero(row).tolist() for layer, row in enumerate(planted)}
    ids = planted_ids(config, n, seed=1)
    first = cost(model, Plan(heads, "first_value"), ids).kl
    weights = None if measured else weights_of(score, heads, n)
    mean = cost(model, Plan(heads, "first_value_mean", rest_weight=weights), ids).kl
    assert first > 1e-5
    assert mean <= first / 2
