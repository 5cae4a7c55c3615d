import numpy as np
import pytest
from arithmetic import roundings
from planted_captures import capture_of

from sinkstudy.simulation.calibration import Calibration, calibrate, simulate_calibrated
from sinkstudy.simulation.formula import expected_probability, simulate
from sinkstudy.simulation.heldout import heldout_tables
from sinkstudy.stats.prefixes import prefix_scores
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import null_score

FEW = Resampling(bootstrap=200, permutations=20, seed=0)
LENGTHS = [5, 24, 60]


def drawn_captures(seed: int, prompts: int, layers: int = 3, heads: int = 6) -> list:
    """Prompts of a model of which a layer's heads are sinks more or less often, on every query alike."""
    rng = np.random.default_rng(seed)
    strength = np.array([0.0, 3.5, 1.0])[:, None] + rng.normal(0, 0.5, (layers, heads))
    captures = []
    for i in range(prompts):
        odds = strength + rng.normal(0, 0.7, (layers, heads))
        mass = np.repeat((1 / (1 + np.exp(-odds)))[..., None], 60 + i % 7, axis=-1)
        mass[..., 0] = 1
        captures.append(capture_of(mass, f"p{i}"))
    return captures


def uniform_captures() -> list:
    return [capture_of(np.broadcast_to(1 / np.arange(1, 65), (2, 3, 64)).copy(), f"p{i}") for i in range(4)]


def test_uniform_attention_is_fitted_by_a_level_of_0_at_every_length():
    calibration = calibrate(uniform_captures())
    # Masses are float32, and log-odds change by 1 / (1 - score) times a score's relative error: four at two tokens.
    np.testing.assert_allclose(calibration.level, 0, atol=roundings(4))
    for n in (2, 7, 64):
        (one,) = simulate_calibrated(calibration, 4, 4, [n], 0, 0.9)
        # The smallest spread is 1e-6, of which five standard deviations are hardly ever drawn.
        np.testing.assert_allclose(one.score, null_score(n), rtol=5e-6 + roundings(4))
        assert not one.is_sink.any()


def test_predicted_sink_probabilities_are_those_of_the_prompts_fitted():
    captures = drawn_captures(1, 300)
    calibration = calibrate(captures)
    for n in LENGTHS:
        scores = np.stack([prefix_scores(c.sink_mass)[..., n - 1] for c in captures])
        for threshold in (0.5, 0.9):
            measured = (scores >= threshold).mean(0)
            np.testing.assert_allclose(calibration.probability(n, threshold), measured, atol=0.12)


def test_levels_between_fitted_lengths_are_interpolated_and_beyond_them_held():
    level = np.array([1.0, 3.0])[:, None, None]
    calibration = Calibration(np.array([4, 16]), level, np.ones((1, 1)))
    assert [calibration.level_at(n).item() for n in (2, 4, 8, 16, 99)] == pytest.approx([1, 1, 2, 3, 3])


def test_one_token_is_a_perfect_sink_by_definition():
    (one,) = simulate_calibrated(calibrate(drawn_captures(0, 4)), 5, 5, [1], 0, 0.9)
    assert one.is_sink.all()
    assert (one.probability == 1).all()


def test_a_scaled_model_keeps_its_layer_profile_and_its_head_indices_together():
    calibration = calibrate(drawn_captures(2, 50))
    big = calibration.scaled(32, 64, np.random.default_rng(0))
    assert big.level.shape == (len(calibration.lengths), 32, 64)
    small = calibration.level
    for layer, deep in ((0, 0), (2, 31)):
        assert set(big.level[5, deep].round(9)) <= set(small[5, layer].round(9))
    # A simulated head is the same captured one in the first and in the last layer.
    origin = {value: head for head, value in enumerate(small[5, 0].round(9))}
    for head in range(64):
        after = origin[big.level[5, 0, head].round(9)]
        assert big.level[5, 31, head] == pytest.approx(small[5, 2, after])
    half_way = calibration.scaled(5, 6, np.random.default_rng(0))
    np.testing.assert_allclose(half_way.level[:, 1], (half_way.level[:, 0] + half_way.level[:, 2]) / 2)


def test_simulated_scores_reach_the_threshold_where_there_is_a_sink_and_as_often_as_foretold():
    calibration = calibrate(drawn_captures(3, 60))
    (one,) = simulate_calibrated(calibration, 60, 400, [24], 5, 0.9)
    np.testing.assert_array_equal(one.score >= 0.9, one.is_sink)
    assert one.is_sink.mean() == pytest.approx(one.probability.mean(), abs=0.01)
    again = simulate_calibrated(calibration, 60, 400, [24], 5, 0.9)[0]
    np.testing.assert_array_equal(one.score, again.score)


def test_prompts_of_one_token_cannot_be_fitted(refuses):
    with refuses("at least two tokens"):
        calibrate([capture_of(np.ones((2, 2, 1)))])


def test_the_expected_probability_of_the_formula_is_the_mean_of_its_draws():
    drawn = np.mean([simulate(4, 500, [10], seed, 0.9)[0].probability.mean(1) for seed in range(20)], axis=0)
    np.testing.assert_allclose(expected_probability(4, 500, 10).mean(1), drawn, rtol=0.02)


@pytest.fixture(scope="module")
def heldout():
    captures = drawn_captures(4, 60)
    return captures, *heldout_tables(iter(captures), "m", [0.5, 0.9], LENGTHS, FEW)


def test_what_was_measured_on_a_half_equals_a_loop_over_its_prompts(heldout):
    captures, table, _ = heldout
    for _, row in table.iterrows():
        half = captures[row["held_out_half"] :: 2]
        is_sink = np.stack([prefix_scores(c.sink_mass)[..., row["n_tokens"] - 1] for c in half]) >= row["threshold"]
        if row["quantity"] == "layer":
            measured = is_sink[:, row["layer"]].mean()
        elif row["quantity"] == "sink_fraction":
            measured = is_sink.mean()
        else:
            measured = np.mean([is_sink[p, 1:, h].mean() for p, h in np.argwhere(is_sink[:, 0])])
        assert row["measured"] == pytest.approx(measured)
        assert row["error"] == pytest.approx(row["predicted"] - row["measured"])


def test_the_half_that_is_predicted_was_not_fitted(heldout):
    captures, table, _ = heldout
    changed = [captures[0], capture_of(np.ones((3, 6, 60)), "x"), *captures[2:]]  # a prompt of half 1
    again, _ = heldout_tables(iter(changed), "m", [0.5, 0.9], LENGTHS, FEW)
    keys = ["threshold", "n_tokens", "quantity", "layer"]
    before, after = (
        t[(t["simulator"] == "calibrated") & (t["held_out_half"] == 1)].set_index(keys) for t in (table, again)
    )
    np.testing.assert_array_equal(before["predicted"], after["predicted"].reindex(before.index))
    assert (before["measured"] != after["measured"].reindex(before.index)).any()


def test_the_data_reject_the_formula_but_not_a_simulator_fitted_to_the_same_model(heldout):
    errors = heldout[2].set_index(["simulator", "threshold"])
    for threshold in (0.5, 0.9):
        assert errors.loc[("formula", threshold), "p_value"] < 0.01
        assert errors.loc[("calibrated", threshold), "p_value"] > 0.01
        ratio = errors.loc[("calibrated", threshold), "layer_error"] / errors.loc[("formula", threshold), "layer_error"]
        assert ratio < 0.5
        assert errors.loc[("calibrated", threshold), "cells"] == 2 * 3 * 3


def test_halves_without_two_tokens_give_tables_without_rows():
    for captures in ([capture_of(np.ones((2, 2, 1)), f"p{i}") for i in range(4)], drawn_captures(0, 1)):
        predictions, errors = heldout_tables(captures, "m", [0.9], [2], FEW)
        assert predictions.empty
        assert errors.empty
        assert "predicted" in predictions
        assert "p_value" in errors
