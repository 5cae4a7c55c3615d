from dataclasses import replace
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_captures import capture_of as of_masses

from sinkstudy.measures.captured import Capture
from sinkstudy.stats.curves import length_tables
from sinkstudy.stats.prefixes import Prefixes, prefix_scores
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.scores import (
    excess_score,
    head_table,
    null_score,
    score_tables,
    strongest_position,
    tail_score,
)

SCORE_COLUMNS = [
    "model",
    "set",
    "prompt",
    "n_tokens",
    "layer",
    "head",
    "sink_score",
    "null_score",
    "excess_score",
    "tail_score",
    "is_sink",
    "strongest_position",
    "position_score",
    "output_norm",
    "text_tokens",
]
LENGTH_COLUMNS = [
    "model",
    "set",
    "prompt",
    "n_tokens",
    "threshold",
    "sink_fraction",
    "mean_score",
    "null_score",
    "mean_excess",
]


NONE = Needs([0.9], [])


def causal_maps(seed: int, layers: int, heads: int, n: int, full_rows: bool = True) -> np.ndarray:
    """Random causal attention (layer, head, query, key); rows sum to 1, or to anything up to 1."""
    rng = np.random.default_rng(seed)
    maps = np.tril(rng.random((layers, heads, n, n)) ** 4 + 1e-3)
    maps /= maps.sum(-1, keepdims=True)
    return maps if full_rows else maps * rng.uniform(0.05, 1, (layers, heads, n, 1))


def score_of(attention: np.ndarray) -> float:
    """The definition, on one explicit map (query, key)."""
    return attention[:, 0].sum() / attention.sum()


def capture_of(maps: np.ndarray, prompt: str = "p", set_name: str = "s", layers: list[int] | None = None) -> Capture:
    n = maps.shape[-1]
    row_sum = maps.sum(-1)
    position = [maps[..., i] if i < n else np.zeros_like(row_sum) for i in range(4)]
    return Capture(
        prompt=prompt,
        set=set_name,
        token_ids=np.arange(n, dtype=np.int32),
        tokens=["t"] * n,
        layers=np.arange(len(maps)) if layers is None else np.array(layers),
        sink_mass=maps[..., 0],
        key_mass=np.stack([*position, np.diagonal(maps, axis1=2, axis2=3)], axis=-1),
        output_norm=np.arange(maps.shape[0] * maps.shape[1]).reshape(maps.shape[:2]) / 8,
        row_sum=None if np.allclose(row_sum, 1) else row_sum,
    )


def score_table(capture: Capture, model: str, threshold: float) -> pd.DataFrame:
    (table,) = score_tables(reduced([capture], NONE), model, threshold)
    return table


def length_table(capture: Capture, model: str, thresholds: list[float]) -> pd.DataFrame:
    (table,) = length_tables(reduced([capture], Needs(thresholds, [])), model)
    return table


small_maps = st.builds(
    causal_maps,
    seed=st.integers(0, 2**32 - 1),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    n=st.integers(1, 12),
    full_rows=st.booleans(),
)


@pytest.mark.parametrize(("n", "score"), [(1, 1.0), (2, 0.75), (5, 0.457), (24, 0.157)])
def test_null_score_has_the_published_values(n, score):
    assert null_score(n) == pytest.approx(score, abs=5e-4)


@given(st.integers(1, 200))
def test_null_score_is_the_score_of_an_explicit_uniform_causal_map(n):
    uniform = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    assert null_score(n) == pytest.approx(score_of(uniform), rel=1e-12)
    assert null_score(n) == pytest.approx(float(sum(Fraction(1, i) for i in range(1, n + 1)) / n), rel=1e-12)


def test_null_score_of_many_lengths_is_that_of_each_in_any_order():
    lengths = np.array([7, 1, 24, 2, 7])
    assert null_score(lengths).tolist() == [null_score(n) for n in lengths]


def test_excess_score_is_0_for_uniform_attention_1_for_a_perfect_sink_and_negative_below_uniform():
    score = np.array([0.75, 1.0, 0.875, 0.5])
    np.testing.assert_allclose(excess_score(score, null_score(2)), [0.0, 1.0, 0.5, -1.0])


@pytest.mark.filterwarnings("error")
def test_excess_score_of_a_single_token_is_undefined():
    assert np.isnan(excess_score(np.ones((2, 3)), null_score(1))).all()
    mixed = excess_score(np.array([1.0, 1.0]), null_score(np.array([1, 2])))
    assert np.isnan(mixed[0])
    assert mixed[1] == 1


@given(small_maps)
def test_prefix_scores_equal_explicit_maps_cut_to_every_length(maps):
    capture = capture_of(maps)
    scores = prefix_scores(capture.sink_mass, capture.row_sum)
    for layer, head, k in np.ndindex(scores.shape):
        cut = maps[layer, head, : k + 1, : k + 1]
        assert scores[layer, head, k] == pytest.approx(score_of(cut), rel=1e-9)


def test_prefix_scores_with_rows_below_1_are_the_ratio_and_not_the_mean():
    # Rows [1.0] and [0.1, 0.1]: mass 1.1 on the first key of 1.2 in all, while the mean mass would be 0.55.
    scores = prefix_scores(np.array([[[1.0, 0.1]]]), np.array([[[1.0, 0.2]]]))
    np.testing.assert_allclose(scores, [[[1.0, 1.1 / 1.2]]])


def test_prefix_scores_of_long_float32_masses_keep_float64_precision():
    mass = np.full((1, 1, 200_000), 0.1, np.float32)
    assert prefix_scores(mass)[0, 0, -1] == pytest.approx(float(np.float32(0.1)), rel=1e-9)


def test_tail_score_leaves_out_the_first_query():
    mass = np.array([[[1.0, 0.2, 0.4], [1.0, 0.0, 0.5]]])
    np.testing.assert_allclose(tail_score(Prefixes([of_masses(mass)]), 3), [[[0.3, 0.25]]], rtol=1e-6)


@pytest.mark.filterwarnings("error")
def test_tail_score_of_a_single_token_is_undefined():
    tail = tail_score(Prefixes([of_masses(np.ones((2, 3, 1)))]), 1)
    assert np.isnan(tail).all()
    assert tail.shape == (1, 2, 3)


@given(small_maps, st.floats(0.05, 1))
def test_score_table_equals_a_loop_over_layers_and_heads(maps, threshold):
    layers = [2 * layer + 1 for layer in range(len(maps))]  # some models attend only in some layers
    table = score_table(capture_of(maps, "hello", "short", layers), "tiny", threshold)
    assert table.columns.tolist() == SCORE_COLUMNS
    assert len(table) == maps.shape[0] * maps.shape[1]
    n = maps.shape[-1]
    null = sum(1 / i for i in range(1, n + 1)) / n
    rows = table.set_index(["layer", "head"])
    for i, head in np.ndindex(maps.shape[:2]):
        row, score = rows.loc[(layers[i], head)], score_of(maps[i, head])
        assert row[["model", "set", "prompt", "n_tokens"]].tolist() == ["tiny", "short", "hello", n]
        assert row["sink_score"] == pytest.approx(score)
        assert row["null_score"] == pytest.approx(null)
        assert row["is_sink"] == (row["sink_score"] >= threshold)
        assert row["output_norm"] == (i * maps.shape[1] + head) / 8
        if n == 1:
            assert np.isnan([row["excess_score"], row["tail_score"]]).all()
        else:
            assert row["excess_score"] == pytest.approx((score - null) / (1 - null))
            assert row["tail_score"] == pytest.approx(sum(maps[i, head, 1:, 0]) / (n - 1))
        if n <= 4:
            assert pd.isna(row["strongest_position"])
            assert np.isnan(row["position_score"])
        else:
            means = [sum(maps[i, head, 4:, key]) / (n - 4) for key in range(4)]
            assert row["position_score"] == pytest.approx(max(means))
            assert row["strongest_position"] == means.index(max(means))


def test_the_strongest_position_is_averaged_over_queries_that_see_all_four():
    """The first four queries, which must attend to early positions, would make it position 0."""
    mass = np.zeros((1, 1, 6, 6))
    mass[0, 0, :4, 0] = 1
    mass[0, 0, 4:, 2] = [0.5, 0.7]
    mass[0, 0, 4:, 4] = 0.9  # the query's own position is no candidate
    capture = replace(of_masses(mass[..., 0]), key_mass=mass)
    position, score = strongest_position(Prefixes([capture]), 6)
    assert position.tolist() == [[[2]]]
    np.testing.assert_allclose(score, [[[0.6]]])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 4])
def test_no_position_is_the_strongest_where_no_query_comes_after_them(n):
    position, score = strongest_position(Prefixes([of_masses(np.ones((2, 3, n)))]), n)
    assert position.shape == score.shape == (1, 2, 3)
    assert np.isnan(position).all()
    assert np.isnan(score).all()


def test_a_score_equal_to_the_threshold_is_a_sink():
    maps = np.array([[[[1.0, 0.0], [0.5, 0.5]]]])
    capture = capture_of(maps)
    assert score_table(capture, "m", 0.75)["is_sink"].tolist() == [True]
    assert score_table(capture, "m", np.nextafter(0.75, 1))["is_sink"].tolist() == [False]
    assert length_table(capture, "m", [0.75])["sink_fraction"].tolist() == [1.0, 1.0]


@given(small_maps, st.lists(st.floats(0.05, 1), min_size=1, max_size=3, unique=True))
def test_length_table_equals_a_loop_over_thresholds_and_lengths(maps, thresholds):
    table = length_table(capture_of(maps, "hello", "short"), "tiny", thresholds)
    assert table.columns.tolist() == LENGTH_COLUMNS
    n = maps.shape[-1]
    assert len(table) == n * len(thresholds)
    rows = table.set_index(["threshold", "n_tokens"])
    heads = list(np.ndindex(maps.shape[:2]))
    for threshold in thresholds:
        for k in range(1, n + 1):
            row = rows.loc[(threshold, k)]
            scores = [score_of(maps[layer, head, :k, :k]) for layer, head in heads]
            null = sum(1 / i for i in range(1, k + 1)) / k
            # A score this near the threshold may fall on either side of it.
            if all(abs(score - threshold) > 1e-9 for score in scores):
                assert row["sink_fraction"] == pytest.approx(sum(s >= threshold for s in scores) / len(heads))
            assert row["mean_score"] == pytest.approx(sum(scores) / len(heads))
            assert row["null_score"] == pytest.approx(null)
            if k == 1:
                assert np.isnan(row["mean_excess"])
            else:
                expected = sum((s - null) / (1 - null) for s in scores) / len(heads)
                assert row["mean_excess"] == pytest.approx(expected, abs=1e-9)


def test_last_rows_of_the_length_table_agree_with_the_score_table():
    capture = capture_of(causal_maps(3, 3, 4, 9))
    scores = score_table(capture, "m", 0.3)
    last = length_table(capture, "m", [0.3]).iloc[-1]
    assert last["mean_score"] == pytest.approx(scores["sink_score"].mean())
    assert last["sink_fraction"] == scores["is_sink"].mean()
    assert last["mean_excess"] == pytest.approx(scores["excess_score"].mean())


@pytest.mark.parametrize(("batch_bytes", "prompts", "parts"), [(1, 1, 7), (5000, 3, 3), (1 << 30, 1000, 1)])
def test_many_prompts_give_the_rows_of_each_in_their_order(batch_bytes, prompts, parts, monkeypatch):
    monkeypatch.setattr("sinkstudy.stats.scores._BATCH_BYTES", batch_bytes)
    monkeypatch.setattr("sinkstudy.stats.reduced._PROMPTS_AT_ONCE", prompts)
    captures = [capture_of(causal_maps(i, 3, 4, n), f"p{i}") for i, n in enumerate((7, 2, 9, 7, 1, 2, 7))]
    made = reduced(iter(captures), Needs([0.3, 0.6], []))
    for tables, one in (
        (score_tables(made, "m", 0.3), lambda capture: score_table(capture, "m", 0.3)),
        (
            length_tables(made, "m"),
            lambda capture: length_table(capture, "m", [0.3, 0.6]),
        ),
    ):
        found = list(tables)
        assert len(found) == parts
        expected = pd.concat([one(capture) for capture in captures], ignore_index=True)
        together = pd.concat(found, ignore_index=True).astype(expected.dtypes)
        pd.testing.assert_frame_equal(together, expected, check_categorical=False)


def test_prompts_of_one_length_whose_rows_sum_to_less_are_scored_each_by_its_own_sums():
    captures = [capture_of(causal_maps(i, 2, 3, 6, full_rows=False), f"p{i}") for i in range(3)]
    table = pd.concat(score_tables(reduced(captures, NONE), "m", 0.3))
    assert len(table) == 18
    for i, capture in enumerate(captures):
        part = table[table["prompt"] == f"p{i}"]
        expected = capture.sink_mass.sum(-1) / capture.row_sum.sum(-1)
        np.testing.assert_allclose(part["sink_score"], expected.ravel())


def score_rows(*rows: tuple) -> pd.DataFrame:
    """Rows of a score table without the columns on positions."""
    return pd.DataFrame(rows, columns=[c for c in SCORE_COLUMNS if "position" not in c and c != "text_tokens"])


def test_head_table_averages_each_head_over_the_prompts_of_a_set_and_over_all():
    scores = score_rows(
        ("m", "short", "a", 2, 0, 0, 0.9, 0.75, 0.6, 0.8, True, 0.1),
        ("m", "short", "a", 2, 0, 1, 0.7, 0.75, -0.2, 0.4, False, 0.2),
        ("m", "short", "b", 4, 0, 0, 0.5, 0.52, 0.1, 0.2, False, 0.3),
        ("m", "short", "b", 4, 0, 1, 0.6, 0.52, 0.3, 0.6, False, 0.4),
        ("m", "long", "c", 9, 0, 0, 1.0, 0.31, 1.0, 1.0, True, 0.8),
        ("m", "long", "c", 9, 0, 1, 0.2, 0.31, 0.0, 0.2, False, 0.0),
    )
    heads = head_table([scores])
    assert heads.columns.tolist() == [
        "model",
        "set",
        "layer",
        "head",
        "prompts",
        "mean_tokens",
        "mean_sink_score",
        "mean_null_score",
        "mean_excess_score",
        "mean_tail_score",
        "sink_share",
        "mean_output_norm",
    ]
    rows = heads.set_index(["set", "head"])
    assert sorted(rows.index) == [("all", 0), ("all", 1), ("long", 0), ("long", 1), ("short", 0), ("short", 1)]
    expected = {
        ("short", 0): (2, 3.0, 0.7, 0.635, 0.35, 0.5, 0.5, 0.2),
        ("short", 1): (2, 3.0, 0.65, 0.635, 0.05, 0.5, 0.0, 0.3),
        ("long", 0): (1, 9.0, 1.0, 0.31, 1.0, 1.0, 1.0, 0.8),
        ("all", 0): (3, 5.0, 0.8, 1.58 / 3, 1.7 / 3, 2 / 3, 2 / 3, 0.4),
        ("all", 1): (3, 5.0, 0.5, 1.58 / 3, 0.1 / 3, 0.4, 0.0, 0.2),
    }
    for index, values in expected.items():
        np.testing.assert_allclose(rows.loc[index].iloc[2:].astype(float), values, atol=1e-12)


def test_head_table_keeps_models_apart():
    one = ("s", "p", 2, 0, 0, 0.5, 0.75, -1.0, 0.0, False, 0.1)
    other = ("s", "p", 2, 0, 0, 1.0, 0.75, 1.0, 1.0, True, 0.1)
    heads = head_table([score_rows(("x", *one), ("y", *other))])
    every = heads[heads["set"] == "all"].set_index("model")
    assert every["mean_sink_score"].to_dict() == {"x": 0.5, "y": 1.0}
    assert every["prompts"].tolist() == [1, 1]


def test_head_table_leaves_one_token_prompts_out_of_scores_that_are_undefined_for_them():
    nan = float("nan")
    scores = score_rows(
        ("m", "one", "a", 1, 0, 0, 1.0, 1.0, nan, nan, True, 0.1),
        ("m", "two", "b", 2, 0, 0, 0.875, 0.75, 0.5, 0.75, False, 0.1),
    )
    heads = head_table([scores]).set_index("set")
    assert heads.loc["all", ["mean_excess_score", "mean_tail_score"]].tolist() == [0.5, 0.75]
    assert heads.loc["one", ["mean_excess_score", "mean_tail_score"]].isna().all()
