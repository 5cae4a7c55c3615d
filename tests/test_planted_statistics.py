"""Statistics of synthetic captures whose truth was planted: they must give it back."""

import numpy as np
import pandas as pd
import pytest
from planted_captures import planted_captures

from sinkstudy.stats.analysis import first_layer_statistics, head_statistics
from sinkstudy.stats.correlation import correlate
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import score_tables

LAYERS, HEADS, TOKENS = 6, 16, 24
FOLLOWS, APPEARS = 0.7, 0.2  # planted: P(later sink | first-layer sink), P(later sink | none)


def planted_decisions(seed: int, prompts: int) -> np.ndarray:
    """(prompt, layer, head): each prompt draws its first-layer sinks, and later ones by the planted probabilities."""
    rng = np.random.default_rng(seed)
    first = rng.random((prompts, 1, HEADS)) < 0.3
    later = rng.random((prompts, LAYERS - 1, HEADS)) < np.where(first, FOLLOWS, APPEARS)
    return np.concatenate([first, later], axis=1)


@pytest.fixture(scope="module")
def tables():
    decisions = planted_decisions(0, 40)
    made = reduced(planted_captures(decisions, TOKENS), Needs([0.9], [TOKENS]))
    resampling = Resampling(500, 500, 0)
    found = first_layer_statistics(made, "m", [TOKENS], resampling)
    return decisions, found | head_statistics(made, "m", [TOKENS], [TOKENS], resampling)


def test_planted_sink_heads_are_recovered_exactly():
    decisions = planted_decisions(0, 40)
    table = pd.concat(score_tables(reduced(planted_captures(decisions, TOKENS), Needs([0.9], [])), "m", 0.9))
    np.testing.assert_array_equal(table["is_sink"], decisions.ravel())


def test_sinks_per_layer_are_recovered_exactly(tables):
    decisions, found = tables
    share = found["persistence"].query("set == 'all' and n_tokens == @TOKENS")
    np.testing.assert_allclose(share["sink_share"], decisions.mean(0).ravel())
    fraction = found["curves"].query("set == 'all' and n_tokens == @TOKENS").iloc[0]
    assert fraction["sink_fraction"] == pytest.approx(decisions.mean())


def test_the_planted_correlation_lies_within_its_interval(tables):
    row = pd.concat(tables[1]["correlation"]).query("prompt == 'all' and set == 'all'").iloc[0]
    assert row["ci_low"] < FOLLOWS < row["ci_high"]
    assert row["p_later"] == pytest.approx(0.3 * FOLLOWS + 0.7 * APPEARS, abs=0.02)
    assert row["p_value"] < 0.01


def test_95_percent_of_intervals_hold_the_planted_correlation():
    held = 0
    for seed in range(200):
        row = correlate(planted_decisions(seed, 40), Resampling(300, 1, seed))
        held += row["ci_low"] <= FOLLOWS <= row["ci_high"]
    assert 180 <= held <= 199  # binomial(200, 0.95) lies there with probability 0.999


@pytest.mark.parametrize(("prompts", "layers", "heads"), [(1, 64, 96), (12, 24, 48)], ids=["exact", "drawn"])
def test_p_values_are_uniform_when_head_labels_mean_nothing(prompts, layers, heads):
    """A planted correlation whose head labels are shuffled within layers, 200 times over: by Kolmogorov and Smirnov's
    test the p-values are uniform. Many heads or prompts, because the statistic is a count and its steps must be small.
    """
    rng = np.random.default_rng(1)
    tendency = rng.beta(0.5, 0.5, (1, 1, heads))  # heads keep to themselves over layers and prompts, as real ones do
    planted = rng.random((prompts, layers, heads)) < tendency
    assert correlate(planted, Resampling(10, 199, 0))["p_value"] <= 1 / 200
    p_values = []
    for seed in range(200):
        labels = np.random.default_rng((prompts, seed)).permuted(np.tile(np.arange(heads), (layers, 1)), axis=1)
        shuffled = np.take_along_axis(planted, labels[None], axis=2)
        # A seed of its own: the same one would draw the very shuffle that is tested.
        p_values.append(correlate(shuffled, Resampling(10, 999, seed=0))["p_value"])
    p_values = np.sort(p_values)
    steps = np.arange(201) / 200
    distance = max(np.abs(p_values - steps[1:]).max(), np.abs(p_values - steps[:-1]).max())
    assert distance < 1.63 / np.sqrt(200)  # the 1% point


def test_layer_pairs_recover_the_planted_probabilities(tables):
    pairs = tables[1]["layer_pairs"].query("n_tokens == @TOKENS and layer_a == 0")
    assert ((pairs["ci_low"] < FOLLOWS) & (pairs["ci_high"] > FOLLOWS)).sum() >= len(pairs) - 1
    np.testing.assert_allclose(pairs["p_b_given_a"], FOLLOWS, atol=0.12)


def test_a_head_that_is_a_sink_in_one_kind_of_prompt_only_is_found_and_no_other():
    sets = ["code", "prose", "dialogue"] * 10
    decisions = np.zeros((30, 3, 4), bool)
    decisions[:, 1, 0] = True  # always
    decisions[[name == "code" for name in sets], 1, 2] = True
    made = reduced(planted_captures(decisions, TOKENS, sets), Needs([0.9], [TOKENS]))
    found = head_statistics(made, "m", [TOKENS], [TOKENS], Resampling(50, 999, 0))
    rows = found["set_dependence"].set_index(["layer", "head"])
    assert rows.index[rows["q_value"] < 0.05].tolist() == [(1, 2)]
    assert rows.loc[(1, 2), ["highest_set", "highest_share", "lowest_share", "sets_where_sink"]].tolist() == [
        "code",
        1,
        0,
        1,
    ]
    assert rows.loc[(1, 0), "sets_where_sink"] == 3
    assert np.isnan(rows.loc[(1, 0), "p_value"])
