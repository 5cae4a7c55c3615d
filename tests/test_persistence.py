from itertools import permutations

import numpy as np
import pytest
from planted_captures import capture_of, planted_captures

from sinkstudy.stats.persistence import false_discovery_rate, persistence_tables, set_dependence, wilson_interval
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling

FEW = Resampling(bootstrap=20, permutations=200, seed=0)


def test_shares_per_set_count_prompts_cut_to_the_length():
    rng = np.random.default_rng(4)
    decisions = rng.random((6, 2, 3)) < 0.5
    sets = ["x", "y", "x", "y", "x", "x"]
    captures = [*planted_captures(decisions, 12, sets), capture_of(np.ones((2, 3, 11)), "too short", "y")]
    shares, _ = persistence_tables(reduced(captures, Needs([0.9], [12])), "m", [12], FEW)
    rows = shares.set_index(["set", "layer", "head"])["sink_share"]
    for name in ("x", "y", "all"):
        members = [i for i in range(6) if name in ("all", sets[i])]
        for layer, head in np.ndindex(2, 3):
            assert rows[(name, layer, head)] == pytest.approx(decisions[members, layer, head].mean())


def test_no_prompt_of_the_length_leaves_tables_with_their_columns_and_no_rows():
    short = reduced([capture_of(np.ones((1, 1, 3)))], Needs([0.9], [10]))
    shares, dependence = persistence_tables(short, "m", [10], FEW)
    assert shares.empty
    assert dependence.empty
    assert {"model", "set", "sink_share"} <= set(shares)
    assert {"model", "q_value", "sets_where_sink"} <= set(dependence)


def test_wilson_intervals_have_the_published_values():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    for hits, prompts, expected in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))):
        np.testing.assert_allclose(wilson_interval(np.array([hits]), prompts), np.array(expected)[:, None], atol=5e-5)


def test_false_discovery_rates_of_the_example_of_benjamini_and_hochberg():
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    q = false_discovery_rate(np.array([*p[::-1], np.nan]))
    assert (q < 0.05).sum() == 4  # the paper's conclusion: the four smallest
    assert np.isnan(q[-1])
    assert q[-2] == pytest.approx(0.0015)
    assert (np.diff(q[:-1]) <= 0).all()


def test_set_dependence_equals_enumerating_every_relabelling():
    names = np.array(list("aabbcc"))
    is_sink = np.array([[1, 1, 0, 0, 0, 1], [1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool).T

    def between(order):
        return sum(is_sink[np.array(order)][names == s].sum(0) ** 2 / 2 for s in "abc")

    observed = between(range(6))
    exact = np.mean([between(order) >= observed - 1e-9 for order in permutations(range(6))], axis=0)
    p_value = set_dependence(names, is_sink, Resampling(1, 4000, 0))
    np.testing.assert_allclose(p_value[:3], exact[:3], atol=0.03)
    assert np.isnan(p_value[3])


def test_one_set_has_nothing_to_depend_on():
    assert np.isnan(set_dependence(np.array(["a", "a"]), np.array([[True], [False]]), FEW)).all()
