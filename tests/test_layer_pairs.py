import numpy as np
import pandas as pd
import pytest
from planted_captures import capture_of

from sinkstudy.stats.correlation import layer_pair_table
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling

FEW = Resampling(bootstrap=200, permutations=20, seed=0)


def test_layer_pairs_equal_a_loop_over_prompts_layers_and_heads():
    rng = np.random.default_rng(1)
    captures = [capture_of(rng.random((3, 5, n)) ** 0.3, f"p{n}") for n in (2, 4, 6, 6)]
    table = layer_pair_table(reduced(captures, Needs([0.7, 0.9], [4])), "m", [4], FEW)
    assert len(table) == 2 * 2 * 6
    for _, row in table.iterrows():
        cut = None if pd.isna(row["n_tokens"]) else 4
        members = [c for c in captures if cut is None or c.n_tokens >= cut]
        assert row["prompts"] == len(members)
        both = given = later = 0
        for capture in members:
            is_sink = capture.sink_mass[..., :cut].mean(-1, dtype=float) >= row["threshold"]
            for head in range(5):
                given += is_sink[row["layer_a"], head]
                later += is_sink[row["layer_b"], head]
                both += is_sink[row["layer_a"], head] and is_sink[row["layer_b"], head]
        assert row["sinks_a"] == given
        assert row["p_b"] == pytest.approx(later / (5 * len(members)))
        assert row["p_b_given_a"] == pytest.approx(both / given if given else np.nan, nan_ok=True)


def test_a_layer_without_sinks_foretells_nothing_and_says_so():
    mass = np.full((2, 3, 10), 0.01)
    mass[1] = 1
    made = reduced([capture_of(mass, "a"), capture_of(mass, "b")], Needs([0.9], []))
    table = layer_pair_table(made, "m", [], FEW)
    rows = table.set_index(["layer_a", "layer_b"])
    assert rows.loc[(0, 1), ["p_b_given_a", "lift", "ci_low", "ci_high"]].isna().all()
    assert rows.loc[(0, 1), "p_b"] == 1
    assert rows.loc[(1, 0), ["p_b_given_a", "ci_low", "ci_high"]].tolist() == [0, 0, 0]
