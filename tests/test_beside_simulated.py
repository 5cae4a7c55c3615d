"""Measured models beside simulations of their own shape, from numbers computed by hand."""

import numpy as np
import pandas as pd

from sinkstudy.stats.comparison import beside_simulated_table

COLUMNS = "model simulator held_out_half threshold n_tokens quantity layer prompts measured ci_low ci_high"
# Two layers of two heads; half 0 has 3 prompts, half 1 has 1. The calibrated rows measure the same and must not count.
HELDOUT = pd.DataFrame(
    [
        ("m", simulator, half, 0.9, n, quantity, layer, prompts, measured, low, high)
        for simulator in ("formula", "calibrated")
        for n in (5, 10)
        for half, prompts, measured, low, high in ((0, 3, 0.5, 0.3, 0.7), (1, 1, 0.9, 0.5, 1.1))
        for quantity, layer in (("layer", 0), ("layer", 1), ("sink_fraction", None), ("correlation", None))
    ],
    columns=COLUMNS.split(),
)
HEADS = pd.DataFrame([("m", layer, head) for layer in (0, 1) for head in (0, 1)], columns=["model", "layer", "head"])


def table(**simulations: np.ndarray) -> pd.DataFrame:
    probability = {preset: {5: values} for preset, values in simulations.items()}
    return beside_simulated_table(HELDOUT, HEADS, probability, 0.9)


def test_a_model_stands_beside_the_simulation_of_its_shape_and_no_other():
    found = table(same=np.array([[0.2, 0.4], [0.6, 0.6]]), wider=np.full((2, 3), 0.5), deeper=np.full((3, 2), 0.5))
    assert found["preset"].tolist() == ["same"] * 3
    assert found["layer"].tolist()[:2] == [0, 1]
    assert pd.isna(found["layer"].iloc[2])
    np.testing.assert_allclose(found["simulated"], [0.3, 0.6, 0.45])
    assert set(found["n_tokens"]) == {5}


def test_halves_count_by_their_prompts_and_their_intervals_add_up_as_independent_ones_do():
    found = table(same=np.full((2, 2), 0.5))
    np.testing.assert_allclose(found["measured"], 0.75 * 0.5 + 0.25 * 0.9)
    reach = np.hypot(0.75 * 0.2, 0.25 * 0.3)
    np.testing.assert_allclose(found["ci_high"] - found["ci_low"], 2 * reach)
    assert (found["prompts"] == 4).all()


def test_an_unknown_interval_of_a_half_leaves_that_of_both_unknown():
    heldout = HELDOUT.assign(ci_low=HELDOUT["ci_low"].where(HELDOUT["held_out_half"] == 0))
    found = beside_simulated_table(heldout, HEADS, {"same": {5: np.full((2, 2), 0.5)}}, 0.9)
    assert found["ci_low"].isna().all()
    assert found["measured"].notna().all()


def test_without_a_model_of_a_shape_the_table_has_its_columns_and_no_row():
    assert list(table().columns) == list(table(same=np.full((2, 2), 0.5)).columns)
    assert table(other=np.zeros((32, 32))).empty
