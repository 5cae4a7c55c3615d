from itertools import pairwise

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkstudy.simulation.formula import read_simulation, simulate, summary_table, write_simulation
from sinkstudy.stats.resampling import Resampling

LENGTHS = [5, 10, 15, 20, 25]
FEW = Resampling(bootstrap=50, permutations=20, seed=0)


def factor(n: int) -> float:
    return max(0.2, 1 - 0.03 * n)


def llama(seed: int = 0, lengths: list[int] = LENGTHS):
    return simulate(layers=32, heads=32, lengths=lengths, seed=seed, threshold=0.9)


def test_matrices_of_the_8b_shape_have_32_layers_of_32_heads_at_every_length():
    simulated = llama()
    assert [one.n_tokens for one in simulated] == LENGTHS
    for one in simulated:
        assert one.probability.shape == one.is_sink.shape == one.score.shape == (32, 32)
        assert one.is_sink.dtype == bool


def test_layers_and_heads_are_not_swapped():
    assert simulate(3, 7, [5], 0, 0.9)[0].score.shape == (3, 7)


def test_a_seed_always_gives_the_same_matrices_and_another_seed_others():
    for one, again, other in zip(llama(1), llama(1), llama(2), strict=True):
        np.testing.assert_array_equal(one.probability, again.probability)
        np.testing.assert_array_equal(one.is_sink, again.is_sink)
        np.testing.assert_array_equal(one.score, again.score)
        assert not np.array_equal(one.score, other.score)


def test_a_length_gives_the_same_matrices_whatever_other_lengths_are_asked_for():
    alone, among = llama(lengths=[15])[0], llama()[2]
    np.testing.assert_array_equal(alone.score, among.score)
    np.testing.assert_array_equal(alone.is_sink, among.is_sink)


@pytest.mark.parametrize("n", [1, 5, 26, 27, 400])
def test_probability_is_layer_base_times_a_beta_2_3_tendency_times_length_factor(n):
    layers, heads = 50, 2000
    one = simulate(layers, heads, [n], seed=3, threshold=0.9)[0]
    base = np.array([0.9 - 0.7 * layer / (layers - 1) for layer in range(layers)])[:, None]
    tendency = one.probability / (base * factor(n))
    assert tendency.min() > 0
    assert tendency.max() < 1
    # Of Beta(2, 3): mean 2/5, variance 1/25, and 11/16 of the mass below one half.
    assert tendency.mean() == pytest.approx(0.4, abs=0.004)
    assert tendency.var() == pytest.approx(0.04, abs=0.002)
    assert (tendency < 0.5).mean() == pytest.approx(11 / 16, abs=0.01)
    # No trend over layers is left once the base is divided out.
    np.testing.assert_allclose(tendency.mean(axis=1), 0.4, atol=0.03)


def test_sinks_are_drawn_with_the_probability():
    one = simulate(60, 2000, [5], seed=4, threshold=0.9)[0]
    assert one.is_sink.mean() == pytest.approx(one.probability.mean(), abs=0.005)
    likely = one.probability > 0.5
    assert one.is_sink[likely].mean() == pytest.approx(one.probability[likely].mean(), abs=0.02)


@pytest.mark.parametrize(("n", "expected"), [(1, 0.97), (10, 0.7), (26, 0.22), (27, 0.2), (28, 0.2), (1000, 0.2)])
def test_the_length_factor_falls_to_a_floor_of_one_fifth_from_27_tokens_on(n, expected):
    at_10, at_n = (one.probability for one in llama(lengths=[10, n]))
    np.testing.assert_allclose(at_n / at_10, expected / 0.7)


def test_a_longer_prompt_only_loses_sinks_and_does_lose_some():
    simulated = llama()
    for shorter, longer in pairwise(simulated):
        assert not (longer.is_sink & ~shorter.is_sink).any()
        assert longer.is_sink.sum() < shorter.is_sink.sum()


@given(st.floats(0.05, 1), st.integers(0, 1000), st.integers(1, 60))
def test_a_score_reaches_the_threshold_exactly_where_there_is_a_sink(threshold, seed, n):
    one = simulate(6, 6, [n], seed, threshold)[0]
    np.testing.assert_array_equal(one.score >= threshold, one.is_sink)
    assert one.score.min() >= 0
    assert one.score.max() <= 1


def test_the_summary_marks_every_row_as_simulated_and_counts_the_matrices():
    simulated = llama()
    table = summary_table("llama-3.1-8b", simulated, 0.9, FEW)
    assert table["kind"].tolist() == ["simulated"] * 5
    assert table["preset"].tolist() == ["llama-3.1-8b"] * 5
    assert table["n_tokens"].tolist() == LENGTHS
    assert (table["threshold"] == 0.9).all()
    assert (table["simulated_heads"] == 1024).all()
    for row, one in zip(table.itertuples(), simulated, strict=True):
        sinks = [bool(cell) for cell in one.is_sink.ravel()]
        assert row.simulated_sinks == sum(sinks)
        assert row.simulated_sink_fraction == sum(sinks) / 1024
        assert row.simulated_mean_score == pytest.approx(one.score.sum() / 1024)
        later = one.is_sink[1:][:, one.is_sink[0]]
        assert row.first_layer_sinks == one.is_sink[0].sum()
        assert row.p_later_given_first == pytest.approx(later.sum() / later.size)


def test_the_summary_has_no_measured_column_name_for_a_simulated_matrix():
    columns = summary_table("x", llama(), 0.9, FEW).columns
    assert not {"model", "sink_score", "mean_score", "sink_fraction", "is_sink"} & set(columns)


def test_the_hdf5_file_gives_back_what_was_written(tmp_path):
    simulated = llama()
    path = tmp_path / "llama.h5"
    write_simulation(path, "llama", simulated, 0.9)
    again = read_simulation(path)
    assert [one.n_tokens for one in again] == LENGTHS
    for written, read in zip(simulated, again, strict=True):
        for name in ("probability", "is_sink", "score"):
            np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert again[0].is_sink.dtype == bool
    assert list(tmp_path.iterdir()) == [path]


def test_the_hdf5_file_says_simulated_in_every_name(tmp_path):
    path = tmp_path / "llama.h5"
    write_simulation(path, "llama", llama(), 0.9)
    with h5py.File(path) as file:
        assert file.attrs["simulated"]
        assert file.attrs["preset"] == "llama"
        assert file.attrs["threshold"] == 0.9
        assert set(file) == {
            "simulated_n_tokens",
            "simulated_probability",
            "simulated_score",
            "simulated_is_sink",
        }
        for name in ("simulated_probability", "simulated_score", "simulated_is_sink"):
            dims = file[name].dims
            assert [axis.label for axis in dims] == ["simulated_n_tokens", "layer", "head"]
            assert list(dims[0].values()) == [file["simulated_n_tokens"]]
