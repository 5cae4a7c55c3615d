"""Predictors of later sinks: their scores against scikit-learn's, and nothing of a held-out prompt in its own fit."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted_captures import capture_of, planted_captures
from sklearn import metrics

from sinkstudy.stats.candidates import Examples, by_other_folds, held_out_probabilities
from sinkstudy.stats.judging import area, judged, learning_curve, pairs_won, rows
from sinkstudy.stats.predictors import predictor_tables
from sinkstudy.stats.recommendation import CANDIDATES
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.tables import write_table

FEW = Resampling(50, 50, 0)


def examples(seed: int = 0, prompts: int = 12, layers: int = 4, heads: int = 6) -> Examples:
    """Heads with tendencies of their own; the second half of them follows the first layer."""
    rng = np.random.default_rng(seed)
    scores = np.clip(rng.normal(rng.uniform(0.2, 0.8, (layers, heads)), 0.2, (prompts, layers, heads)), 0, 1)
    scores[:, 1:, heads // 2 :] = (scores[:, 1:, heads // 2 :] + scores[:, :1, heads // 2 :]) / 2
    activation = rng.uniform(1, 9, (prompts, layers))
    return Examples(scores, scores[:, 1:] >= 0.5, rng.integers(0, 3, prompts), np.arange(prompts) % 5, activation)


@pytest.mark.parametrize("levels", [3, 1000], ids=["ties", "few ties"])
def test_areas_are_scikit_learns_for_any_weights_of_prompts(levels):
    rng = np.random.default_rng(levels)
    values, is_sink = rng.integers(0, levels, (7, 4, 5)) / levels, rng.random((7, 4, 5)) < 0.3
    draws = rng.multinomial(7, np.full(7, 1 / 7), size=6).astype(float)
    found = area(pairs_won(values, is_sink, np.zeros(7, int)), draws)
    weights = np.repeat(draws, 20, axis=1)
    expected = [metrics.roc_auc_score(is_sink.ravel(), values.ravel(), sample_weight=w) for w in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_only_prompts_of_one_fold_are_compared():
    rng = np.random.default_rng(1)
    values, is_sink, folds = rng.random((6, 8)), rng.random((6, 8)) < 0.5, np.array([0, 1, 2, 0, 1, 2])
    won, every = pairs_won(values, is_sink, folds)
    for p, q in np.ndindex(6, 6):
        pairs = [(a, b) for a in values[p][is_sink[p]] for b in values[q][~is_sink[q]] if folds[p] == folds[q]]
        assert (won[p, q], every[p, q]) == (sum(a > b for a, b in pairs), len(pairs))


def test_a_draw_without_sinks_has_no_area():
    pairs = pairs_won(np.eye(3), np.array([[True, False, False], [False] * 3, [False] * 3]), np.zeros(3, int))
    np.testing.assert_array_equal(area(pairs, np.array([[0, 2, 1.0], [1, 1, 1]])), [np.nan, 7 / 8])


def test_rows_hold_the_scores_that_scikit_learn_gives():
    made = examples()
    made = replace(made, folds=np.repeat([0, 1, 2], 4))
    probabilities = held_out_probabilities(made)
    for row in rows(judged(probabilities, made, np.arange(12)), FEW):
        truth, given = made.is_sink.ravel(), probabilities[row["predictor"]].ravel()
        of_folds = [metrics.confusion_matrix(truth, given >= 0.5)]
        (_, wrong), (missed, hits) = of_folds[0]
        assert row["log_loss"] == pytest.approx(metrics.log_loss(truth, given))
        assert row["brier"] == pytest.approx(metrics.brier_score_loss(truth, given))
        assert row["recall"] == pytest.approx(hits / (hits + missed))
        assert row["precision"] == pytest.approx(hits / (hits + wrong) if hits + wrong else np.nan, nan_ok=True)
        assert row["base_rate"] == truth.mean()
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert row["log_loss_low"] <= row["log_loss"] <= row["log_loss_high"]


def test_what_happened_on_a_held_out_prompt_changes_none_of_its_probabilities():
    made = examples()
    out = made.folds == 2
    told = made.is_sink.copy()
    told[out] = ~told[out]
    before, after = held_out_probabilities(made), held_out_probabilities(replace(made, is_sink=told))
    assert tuple(before) == CANDIDATES
    for name in before:
        np.testing.assert_array_equal(before[name][out], after[name][out])
        assert not np.array_equal(before[name][~out], after[name][~out])  # which were fitted with it


def test_a_training_prompt_has_the_mean_of_the_other_training_folds():
    values, folds = np.random.default_rng(0).random((7, 2)), np.array([0, 1, 2, 0, 1, 2, 0])
    found = by_other_folds(values, folds, folds != 1)
    for p in range(7):
        np.testing.assert_allclose(found[p], values[(folds != 1) & (folds != folds[p])].mean(0))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("first_layer", (12, 1, 6)),
        ("activation", (12, 4, 1)),
        ("length_and_first_token", (12, 1, 1)),
        ("anchor", (12, 4, 6)),
    ],
)
def test_a_candidate_that_decides_alone_is_told_from_the_rest(name, shape):
    """Each plants its own cause; `anchor`: the third layer, which is neither the first nor the one before the last."""
    rng, made = np.random.default_rng(3), examples(prompts=40)
    cause, token = rng.random((40, *shape[1:])) < 0.5, rng.integers(0, 2, 40)
    scores = rng.random((40, 5, 6))
    if name == "first_layer":
        scores[:, :1] = np.where(cause, 0.9, 0.1)
    if name == "length_and_first_token":
        cause = token[:, None, None] == 1
    if name == "anchor":
        scores[:, 2] = np.where(cause[:, 0], 0.9, 0.1)
        cause = cause[:, :1]
    activation = np.ones((40, 5))
    if name == "activation":
        activation[:, 1:] = np.where(cause[..., 0], 99, 2)
    is_sink = np.broadcast_to(cause, (40, 4, 6)).copy()
    if name == "anchor":
        is_sink[:, :2] = rng.random((40, 2, 6)) < 0.5
    made = Examples(scores, is_sink, token, np.arange(40) % 5, activation)
    auc = {row["predictor"]: row["auc"] for row in rows(judged(held_out_probabilities(made), made, np.arange(40)), FEW)}
    assert max(auc, key=lambda one: auc[one] * (one != "all")) == name, auc


def test_where_all_heads_are_sinks_or_none_the_table_says_so_and_two_prompts_or_a_single_layer_are_too_few():
    always = [capture_of(np.ones((2, 3, 4)), f"p{i}") for i in range(3)]
    found = predictor_tables(reduced(always, Needs([0.9], [], [2, 8])), "m", [2, 8], "prompt", FEW)["predictors"]
    assert set(found["undefined"]) == {"every head is a sink"}
    assert set(found["n_tokens"]) == {2}
    assert found["auc"].isna().all()
    for few in (always[:2], [capture_of(np.ones((1, 3, 4)), f"p{i}") for i in range(3)]):
        tables = predictor_tables(reduced(few, Needs([0.9], [], [2])), "m", [2], "prompt", FEW)
        assert [len(table) for table in tables.values()] == [0, 0]


def planted(sets: list[str]) -> list:
    """Heads are sinks as the prompt's set has it, another way in each set."""
    rng = np.random.default_rng(0)
    ways = {name: rng.random((3, 8)) < 0.5 for name in dict.fromkeys(sets)}
    return planted_captures(np.stack([ways[name] for name in sets]), 12, sets)


def test_a_record_of_the_same_set_is_of_no_use_when_sets_are_held_out_together():
    captures = reduced(planted(["a", "b", "c"] * 6), Needs([0.9], [], [12]))
    auc = {}
    for hold_out in ("prompt", "set"):
        table = predictor_tables(captures, "m", [12], hold_out, FEW)["predictors"]
        row = table[(table["predictor"] == "record") & (table["measure"] == "score") & table["n_tokens"].isna()]
        auc[hold_out] = row["auc"].iloc[0]
    assert auc["prompt"] > auc["set"] + 0.1


def test_the_learning_curve_ends_at_the_record_of_all_other_folds():
    made = examples(prompts=15)
    curve = pd.DataFrame(learning_curve(made, FEW))
    assert curve["training_prompts"].tolist() == [1, 2, 4, 8, 12]
    record = np.stack([made.scores[made.folds != fold, 1:].mean(0) for fold in range(5)])[made.folds]
    expected = area(pairs_won(record, made.is_sink, made.folds), np.ones((1, 15)))[0]
    assert curve["auc"].iloc[-1] == pytest.approx(expected)
    assert curve["auc"].iloc[0] < curve["auc"].iloc[-1]


def test_the_same_captures_give_the_same_bytes(tmp_path):
    captures, written = reduced(planted(["a", "b"] * 4), Needs([0.3, 0.9], [], [4, 12])), []
    for run in range(2):
        for name, table in predictor_tables(captures, "m", [4, 12], "prompt", FEW).items():
            write_table(table, tmp_path / f"{name}{run}.csv")
            written.append((tmp_path / f"{name}{run}.csv").read_bytes())
    assert written[:2] == written[2:]
