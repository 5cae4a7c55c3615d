import math
from collections.abc import Iterable
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sinkstudy.findings.text import percent
from sinkstudy.measures.captured import Capture
from sinkstudy.stats import scores
from sinkstudy.stats.correlation import correlate, correlation_tables
from sinkstudy.stats.curves import curve_table
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.relabelling import drawn_p_value, exact_p_value
from sinkstudy.stats.resampling import Resampling

FEW = Resampling(bootstrap=200, permutations=50, seed=0)
QUICK = Resampling(bootstrap=10, permutations=10, seed=0)
STATISTICS = ["p_later_given_first", "p_later", "lift", "phi", "ci_low", "ci_high", "p_value"]

decisions = arrays(bool, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=4))


def sinks(*prompts: str) -> np.ndarray:
    """(prompt, layer, head) decisions; a prompt's layers are words of 1 (a sink) and 0."""
    return np.array([[[cell == "1" for cell in layer] for layer in prompt.split()] for prompt in prompts])


def test_correlate_on_a_hand_computed_matrix():
    row = correlate(sinks("1100 1010 1000"), FEW)
    assert row["first_layer_sinks"] == 2
    assert row["p_later_given_first"] == 0.5  # head 0 follows in 2 of 2 layers, head 1 in none
    assert row["p_later"] == 3 / 8
    assert row["lift"] == pytest.approx(4 / 3)
    # Of (first, later): both 2, first only 2, later only 1, neither 3.
    assert row["phi"] == pytest.approx((2 * 3 - 2 * 1) / math.sqrt(4 * 4 * 3 * 5))


def test_correlate_pools_first_layer_sinks_over_prompts():
    row = correlate(sinks("1100 1010 1000", "1000 1000 1100"), FEW)
    assert row["first_layer_sinks"] == 3
    assert row["p_later_given_first"] == pytest.approx((1 + 0 + 1) / 3)  # the mean of the prompts' means is 0.75
    assert row["p_later"] == pytest.approx(6 / 16)


def test_77_of_104_later_layers_that_follow_print_as_74_04_percent():
    later = np.zeros((13, 8), bool)
    later.flat[:77] = True
    first = np.array([[True] * 8 + [False] * 24])
    others = np.random.default_rng(5).random((13, 24)) < 0.5
    is_sink = np.concatenate([first, np.concatenate([later, others], axis=1)])
    value = correlate(is_sink[None], FEW)["p_later_given_first"]
    assert round(value, 4) == 0.7404
    assert percent(value) == "74.04%"


@given(decisions)
def test_correlate_equals_counting_by_hand(is_sink):
    table = {(first, later): 0 for first in (False, True) for later in (False, True)}
    follows, first_sinks = [], 0
    for prompt in is_sink:
        for head in range(is_sink.shape[2]):
            later = [bool(layer[head]) for layer in prompt[1:]]
            for one in later:
                table[bool(prompt[0, head]), one] += 1
            if prompt[0, head]:
                first_sinks += 1
                follows.append(later)
    row = correlate(is_sink, QUICK)
    assert row["first_layer_sinks"] == first_sinks
    if is_sink.shape[1] == 1:
        assert all(math.isnan(row[name]) for name in STATISTICS)
        return
    base = (table[True, True] + table[False, True]) / sum(table.values())
    assert row["p_later"] == pytest.approx(base)
    both, neither = table[True, True], table[False, False]
    first_only, later_only = table[True, False], table[False, True]
    margins = (both + first_only) * (later_only + neither) * (both + later_only) * (first_only + neither)
    if margins == 0:
        assert math.isnan(row["phi"])
    else:
        phi = (both * neither - first_only * later_only) / math.sqrt(margins)
        assert row["phi"] == pytest.approx(phi, abs=1e-12)
    if not follows:
        assert all(math.isnan(row[n]) for n in ("p_later_given_first", "lift", "ci_low", "ci_high", "p_value"))
        return
    conditional = sum(sum(later) / len(later) for later in follows) / len(follows)
    assert row["p_later_given_first"] == pytest.approx(conditional)
    if base == 0:
        assert math.isnan(row["lift"])
    else:
        assert row["lift"] == pytest.approx(conditional / base)
    if is_sink[:, 0].any(-1).sum() > 1:
        assert 0 <= row["ci_low"] <= row["ci_high"] <= 1 + 1e-12
    else:
        assert math.isnan(row["ci_low"])
        assert math.isnan(row["ci_high"])
    assert 0 < row["p_value"] <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("prompts", "undefined"),
    [
        (("000 110 011",) * 2, ["p_later_given_first", "lift", "phi", "ci_low", "ci_high", "p_value"]),
        (("101",) * 2, STATISTICS),
        (("000",), STATISTICS),
        (("110 000 000",) * 2, ["lift", "phi"]),
        (("111 110 011",) * 2, ["phi"]),
        (("110 111 111",) * 2, ["phi"]),
        (("100 010 110",), ["ci_low", "ci_high"]),
        (("100 010 110", "000 000 000"), ["ci_low", "ci_high"]),
        (("100 010 110", "001 000 000"), []),
    ],
    ids=[
        "no first sink",
        "one layer",
        "one layer, no sink",
        "no later sink",
        "all first",
        "all later",
        "one prompt",
        "one of two prompts",
        "none",
    ],
)
def test_undefined_statistics_are_nan_and_the_others_are_not(prompts, undefined):
    row = correlate(sinks(*prompts), FEW)
    assert [name for name in STATISTICS if math.isnan(row[name])] == undefined


def test_no_later_sinks_mean_a_correlation_of_0_that_is_no_evidence():
    row = correlate(sinks("110 000 000"), FEW)
    assert row["p_later_given_first"] == row["p_later"] == 0
    assert row["p_value"] == 1


def random_decisions(seed: int, prompts: int = 12, layers: int = 5, heads: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tendency = rng.random((1, 1, heads))
    return rng.random((prompts, layers, heads)) < tendency


def test_the_interval_is_the_same_for_a_seed_and_another_for_another():
    is_sink = random_decisions(1)
    one, again, other = (correlate(is_sink, Resampling(300, 20, seed)) for seed in (7, 7, 8))
    assert one == again
    assert (one["ci_low"], one["ci_high"]) != (other["ci_low"], other["ci_high"])


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_contains_the_estimate(seed):
    row = correlate(random_decisions(seed), FEW)
    assert row["ci_low"] <= row["p_later_given_first"] <= row["ci_high"]
    assert row["ci_low"] < row["ci_high"]


def test_the_interval_over_prompts_equals_a_plain_bootstrap():
    is_sink = random_decisions(3, prompts=15)
    row = correlate(is_sink, Resampling(4000, 10, 0))
    rng = np.random.default_rng(99)
    estimates = []
    for _ in range(4000):
        drawn = is_sink[rng.integers(0, 15, 15)]
        estimates.append(drawn[:, 1:].mean(1)[drawn[:, 0]].mean())
    assert row["ci_low"] == pytest.approx(np.quantile(estimates, 0.025), abs=0.01)
    assert row["ci_high"] == pytest.approx(np.quantile(estimates, 0.975), abs=0.01)


def test_the_interval_of_two_prompts_spans_both():
    """A resample is one of them twice in half of all draws, so the 95% interval ends at each prompt's own value."""
    row = correlate(sinks("11 11 11", "11 10 00"), FEW)
    assert (row["ci_low"], row["ci_high"]) == (0.25, 1.0)


def test_prompts_that_agree_leave_an_interval_of_no_width():
    row = correlate(sinks(*["110 100 111"] * 4), FEW)
    assert row["ci_low"] == pytest.approx(row["p_later_given_first"])
    assert row["ci_high"] == pytest.approx(row["p_later_given_first"])


def test_a_single_prompt_has_no_interval():
    row = correlate(random_decisions(0, prompts=1), FEW)
    assert row["first_layer_sinks"] > 1
    assert math.isnan(row["ci_low"])
    assert math.isnan(row["ci_high"])
    assert not math.isnan(row["p_value"])


def test_one_prompt_with_first_layer_sinks_among_many_gives_no_interval():
    row = correlate(sinks("10 10", "00 11", "00 01", "00 00"), FEW)
    assert row["p_later_given_first"] == 1.0
    assert math.isnan(row["ci_low"])


def test_prompts_without_first_layer_sinks_do_not_break_the_interval():
    row = correlate(sinks("10 10", "10 10", "00 01", "00 00"), FEW)
    assert (row["p_later_given_first"], row["ci_low"], row["ci_high"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "is_sink",
    [
        sinks("100 100"),
        sinks("110 110"),
        sinks("110 101"),
        sinks("100 110 100"),
        sinks("110 110 011", "100 100 110"),
        sinks("001 110 100"),
    ],
    ids=["1/3", "2/3 of pairs", "partial", "three layers", "two prompts", "never follows"],
)
def test_p_value_equals_enumerating_every_relabelling(is_sink):
    """Every later layer is relabelled by itself, and all prompts share the labels."""
    first, later = is_sink[:, 0], is_sink[:, 1:]
    heads = is_sink.shape[2]

    def statistic(relabelled: np.ndarray) -> int:
        return int((first[:, None] & relabelled).sum())

    reached = []
    for labels in product(permutations(range(heads)), repeat=later.shape[1]):
        relabelled = np.stack([later[:, layer, list(order)] for layer, order in enumerate(labels)], axis=1)
        reached.append(statistic(relabelled) >= statistic(later))
    exact, draws = np.mean(reached), 2000
    p_value = correlate(is_sink, Resampling(10, draws, 4))["p_value"]
    drawn = 0 if len(is_sink) == 1 else 4 * math.sqrt(exact * (1 - exact) / draws) + 2 / draws
    assert p_value == pytest.approx(exact, abs=drawn + 1e-12)


def test_the_exact_p_value_of_one_later_layer_is_fishers():
    """Fisher's tea: of 8 cups, 4 had the milk first, and 3 of the 4 named were right: p = 17 / 70."""
    assert exact_p_value(4, np.array([4]), 8, 3) == pytest.approx(17 / 70)


@pytest.mark.parametrize("seed", range(4))
def test_exact_and_drawn_p_values_of_one_prompt_agree(seed):
    is_sink = np.random.default_rng(seed).random((6, 12)) < 0.4
    first, later = is_sink[0], is_sink[1:]
    pairs = first[None, :, None] & later[:, None, :]
    exact = exact_p_value(int(first.sum()), later.sum(1), 12, int((first & later).sum()))
    drawn = drawn_p_value(pairs.astype(int), Resampling(10, 20000, seed))
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20000) + 1e-4)


def test_many_heads_that_all_follow_have_the_p_value_of_every_layer_drawing_the_same_half():
    is_sink = np.tile(np.arange(16) < 8, (1, 4, 1))
    assert correlate(is_sink, FEW)["p_value"] == pytest.approx(math.comb(16, 8) ** -3)


def test_a_drawn_p_value_is_never_0():
    is_sink = np.tile(np.arange(16) < 8, (2, 4, 1))
    assert correlate(is_sink, Resampling(10, 99, 0))["p_value"] == pytest.approx(1 / 100)


def capture_of(prompt: str, set_name: str, mass: np.ndarray, row_sum: np.ndarray | None = None) -> Capture:
    return Capture(
        prompt=prompt,
        set=set_name,
        token_ids=np.arange(mass.shape[-1]),
        tokens=["t"] * mass.shape[-1],
        layers=np.arange(len(mass)),
        sink_mass=mass,
        key_mass=mass[..., None],
        output_norm=np.zeros(mass.shape[:2]),
        row_sum=row_sum,
    )


def captures(*prompts: tuple[str, str, int]) -> list[Capture]:
    """Captures (id, set, tokens) of 3 layers and 4 heads with random masses, 1 for the first query."""
    rng = np.random.default_rng(11)
    made = []
    for prompt, set_name, n in prompts:
        mass = rng.random((3, 4, n))
        mass[..., 0] = 1
        made.append(capture_of(prompt, set_name, mass))
    return made


THREE = (("one", "short", 2), ("two", "long", 6), ("three", "short", 4))


def tables(
    made: Iterable[Capture], thresholds: list[float], lengths: list[int], resampling: Resampling = FEW
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The correlation table and the curves of the same captures."""
    found = reduced(made, Needs(thresholds, lengths))
    curves = curve_table(found, "tiny", resampling)
    return pd.concat(correlation_tables(found, "tiny", lengths, resampling, curves), ignore_index=True), curves


def test_correlation_table_has_a_row_per_prompt_per_set_over_all_and_per_length():
    table, _ = tables(captures(*THREE), [0.6], [1, 3, 4, 6, 7])
    assert table.columns.tolist() == [
        "model",
        "set",
        "prompt",
        "n_tokens",
        "threshold",
        "first_layer_sinks",
        *STATISTICS,
        "prompts",
    ]
    assert (table["model"] == "tiny").all()
    assert table["n_tokens"].isna().tolist() == [False] * 3 + [True] * 3 + [False] * 4
    keys = table.assign(n_tokens=table["n_tokens"].fillna(0))[["set", "prompt", "n_tokens", "prompts"]]
    assert list(keys.itertuples(index=False, name=None)) == [
        ("short", "one", 2, 1),
        ("long", "two", 6, 1),
        ("short", "three", 4, 1),
        ("short", "all", 0, 2),
        ("long", "all", 0, 1),
        ("all", "all", 0, 3),
        ("all", "all", 1, 3),
        ("all", "all", 3, 2),
        ("all", "all", 4, 2),
        ("all", "all", 6, 1),
    ]


def test_correlation_table_repeats_every_row_at_every_threshold():
    table, _ = tables(captures(*THREE), [0.3, 0.6], [3])
    assert len(table) == 2 * 7
    counts = table.groupby(["set", "prompt", table["n_tokens"].fillna(0)])["threshold"].apply(list)
    assert all(thresholds == [0.3, 0.6] for thresholds in counts)


@given(st.integers(1, 6), st.floats(0.4, 0.9))
def test_correlation_table_values_come_from_prompts_cut_to_the_length(length, threshold):
    made = captures(*THREE)
    table, _ = tables(made, [threshold], [length], QUICK)

    def expected(members: list[Capture], cut: int | None = None) -> dict:
        means = [capture.sink_mass[..., :cut].mean(-1) for capture in members]
        return correlate(np.stack(means) >= threshold, QUICK)

    table["n_tokens"] = table["n_tokens"].fillna(0)
    averages = table[table["prompt"] == "all"].set_index(["set", "n_tokens"])
    cases = {
        ("short", 0): expected([made[0], made[2]]),
        ("long", 0): expected([made[1]]),
        ("all", 0): expected(made),
        ("all", length): expected([c for c in made if c.n_tokens >= length], length),
    }
    for capture in made:
        row = table[table["prompt"] == capture.prompt].iloc[0]
        assert row[STATISTICS].tolist() == pytest.approx([expected([capture])[n] for n in STATISTICS], nan_ok=True)
    for key, values in cases.items():
        row = averages.loc[key]
        assert row["first_layer_sinks"] == values["first_layer_sinks"]
        # Beyond 2 tokens some prompts are too short for the length, and some draws hold fewer prompts than others.
        compared = [name for name in STATISTICS if key[1] <= 2 or not name.startswith("ci_")]
        assert row[compared].tolist() == pytest.approx([values[n] for n in compared], nan_ok=True)


def test_the_correlation_at_a_length_has_the_interval_of_the_curves():
    made = captures(*((f"p{i}", "ab"[i % 2], 4 + i % 5) for i in range(12)))
    table, curves = tables(made, [0.6, 0.7], [2, 4, 6])
    at_length = table[(table["prompt"] == "all") & table["n_tokens"].notna()]
    of_all = curves[curves["set"] == "all"].set_index(["n_tokens", "threshold"])
    assert len(at_length) == 2 * 3
    for _, row in at_length.iterrows():
        same = of_all.loc[(row["n_tokens"], row["threshold"])]
        assert row["p_later_given_first"] == same["p_later_given_first"]
        assert row["ci_low"] == same["p_later_given_first_low"]
        assert row["ci_high"] == same["p_later_given_first_high"]
    assert (at_length["ci_low"] < at_length["ci_high"]).any()


def test_correlation_table_does_not_depend_on_how_many_captures_are_held_at_once(monkeypatch):
    made = captures(*(("p" + str(i), "ab"[i % 2], 2 + i % 5) for i in range(12)))
    whole, _ = tables(iter(made), [0.4, 0.6], [2, 4])
    monkeypatch.setattr(scores, "_BATCH_BYTES", 1)
    pd.testing.assert_frame_equal(tables(iter(made), [0.4, 0.6], [2, 4])[0], whole)


def test_correlation_table_scores_rows_below_1_by_the_ratio():
    """Mass 1.1 of 1.2 is a sink at 0.9; the mean mass of 0.55 would not be."""
    mass = np.full((2, 1, 2), [1.0, 0.1])
    row_sum = np.full((2, 1, 2), [1.0, 0.2])
    table, _ = tables([capture_of("p", "s", mass, row_sum)], [0.9], [])
    assert table["first_layer_sinks"].tolist() == [1, 1, 1]
