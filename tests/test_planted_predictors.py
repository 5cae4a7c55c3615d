"""Captures with a planted predictor of later sinks: the findings must name it, and none where there is none."""

import numpy as np
import pandas as pd
import pytest
from planted_captures import planted_captures

from sinkstudy.findings.predictor_rules import first_layer, predictor
from sinkstudy.findings.rules import Verdict
from sinkstudy.stats.correlation import correlation_tables
from sinkstudy.stats.curves import curve_table
from sinkstudy.stats.predictors import predictor_tables
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling

PROMPTS, LAYERS, HEADS, TOKENS = 20, 5, 8, 12
SEEDS = 100


def planted(kind: str, seed: int) -> np.ndarray:
    """(prompt, layer, head) sinks; each layer has a base rate of its own, or all have one where `kind` is `even`."""
    rng = np.random.default_rng((len(kind), seed))
    rate = rng.uniform(0.2, 0.6, (1 if kind == "even" else LAYERS, 1))
    chance = np.broadcast_to(rate, (PROMPTS, LAYERS, HEADS)).copy()
    if kind == "record":  # a head keeps to itself over prompts
        chance[:, 1:] = rng.permuted(np.tile([0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.1, 0.1], (LAYERS - 1, 1)), axis=1)
    is_sink = rng.random(chance.shape) < chance
    if kind == "first_layer":  # a head follows, whichever heads the prompt has chosen in its first layer
        is_sink[:, 1:] = rng.random(is_sink[:, 1:].shape) < np.where(is_sink[:, :1], 0.85, 0.2)
    return is_sink


def verdicts(is_sink: np.ndarray, seed: int) -> tuple[Verdict, Verdict]:
    """Of `predictor` and `first_layer`."""
    captures, resampling = planted_captures(is_sink, TOKENS), Resampling(300, 300, seed)
    made = reduced(captures, Needs([0.9], [TOKENS], [TOKENS]))
    tables = correlation_tables(made, "m", [TOKENS], resampling, curve_table(made, "m", resampling))
    pooled = pd.concat(tables).dropna(subset="n_tokens")
    by_score = predictor_tables(made, "m", [TOKENS], "prompt", resampling, measures=["score"])
    return predictor(**by_score), first_layer(pooled[(pooled["set"] == "all") & (pooled["prompt"] == "all")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said", "followed"),
    [
        ("first_layer", "use the same head of the first layer", True),
        ("record", "use the head's own record", False),
        ("nothing", "no candidate", False),
        ("even", "no candidate", False),
    ],
)
def test_in_95_of_100_seeds_the_planted_predictor_is_named(kind, said, followed):
    right = np.zeros(2, int)
    for seed in range(SEEDS):
        named, first = verdicts(planted(kind, seed), seed)
        right += named.reason.startswith(said), first.holds is followed
    assert right.min() >= 95, right
