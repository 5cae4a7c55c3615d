"""Speedups with intervals, and how many rounds of timing they take."""

import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.stats import t

from sinkstudy.evaluation.timing import Alternative, Rounds, interleaved
from sinkstudy.stats.speedups import corrected_low, speedups


def times(rng: np.random.Generator, rounds: int, speed: list[float], spread: float, drift: float) -> np.ndarray:
    """(round, way) on a machine whose speed walks from round to round."""
    noise = spread * rng.standard_normal((rounds, len(speed))) + drift * rng.standard_normal((rounds, 1)).cumsum(0)
    return np.exp(noise) / speed


def test_the_error_is_that_of_a_least_squares_fit_of_rounds_and_ways():
    seconds = times(np.random.default_rng(0), 6, [1.0, 1.2, 0.9, 1.1], 0.1, 0.5)
    rounds, ways = np.indices(seconds.shape).reshape(2, -1)
    design = np.concatenate([np.eye(6)[rounds], np.eye(4)[ways][:, 1:]], axis=1)
    effects, squares, *_ = np.linalg.lstsq(design, np.log(seconds).ravel())
    variance = squares[0] / (24 - 9) * np.linalg.inv(design.T @ design)
    found = speedups(seconds, 0)
    np.testing.assert_allclose(found.ratio[1:], np.exp(-effects[6:]))
    np.testing.assert_allclose(found.error, np.sqrt(np.diag(variance)[6:]))
    assert found.freedom == 15


def test_two_ways_are_compared_as_pairs():
    seconds = times(np.random.default_rng(1), 7, [1.0, 1.3], 0.1, 0.5)
    logs = np.log(seconds[:, 0] / seconds[:, 1])
    low = np.exp(logs.mean() - t.ppf(0.975, 6) * logs.std(ddof=1) / np.sqrt(7))
    found = speedups(seconds, 0)
    assert found.ratio[1] / found.factor == pytest.approx(low)
    assert found.ratio[0] == 1


@pytest.mark.parametrize("rounds", [3, 12])
def test_intervals_hold_the_truth_in_95_of_100_whatever_the_drift(rounds):
    rng = np.random.default_rng(0)
    found = [speedups(times(rng, rounds, [1.0, 1.1, 0.8], 0.08, 0.3), 0) for _ in range(2000)]
    held = [one.ratio[1] / one.factor < 1.1 < one.ratio[1] * one.factor for one in found]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws
    low = [corrected_low(one.ratio[1:], one.ratio[1:] / one.factor, one.freedom, 2) for one in found]
    assert np.mean(np.any(np.array(low) > [1.1, 0.8], axis=1)) <= 0.05


def test_one_round_or_one_way_has_no_interval():
    for seconds in (np.array([[1.0, 2.0]]), np.ones((5, 1))):
        assert np.isnan(speedups(seconds, 0).factor)


@pytest.mark.parametrize(
    ("rounds", "count", "passed", "over"),
    [
        (Rounds(4, 0.02), 3, 0, False),
        (Rounds(4, 0.02), 4, 0, True),
        (Rounds(4, 1e-9), 40, 0, False),
        (Rounds(4, 1e-9, seconds=5), 3, 6, False),
        (Rounds(4, 1e-9, seconds=5), 4, 6, True),
        (Rounds(4), 4, 0, True),
    ],
    ids=["too few", "precise", "imprecise", "time is up, too few", "time is up", "no more is asked"],
)
def test_rounds_end_once_they_are_enough_and_precise_or_time_is_up(rounds, count, passed, over):
    seconds = times(np.random.default_rng(0), count, [1.0, 1.5, 0.5], 0.001, 0.3)
    assert rounds.are_over(seconds, passed) is over


def test_a_single_way_takes_the_least_number_of_rounds():
    assert [Rounds(3, 0.02).are_over(np.ones((n, ways)), 0) for n in (2, 3) for ways in (0, 1)] == [False] * 2 + [
        True
    ] * 2


def test_rounds_end_alike_wherever_the_speedups_lie():
    noise = times(np.random.default_rng(2), 30, [1.0, 1.0, 1.0], 0.03, 0.1)
    ends = [[Rounds(3, 0.02).are_over(part[:n], 0) for n in range(31)] for part in (noise, noise / [1, 2, 9])]
    assert ends[0] == ends[1]
    assert True in ends[0][5:]


def test_what_is_not_compared_sits_out_once_it_has_taken_long(monkeypatch):
    monkeypatch.setattr("sinkstudy.evaluation.timing._ASIDE_SECONDS", 0.02)
    slow, quick = (lambda: time.sleep(0.015)), (lambda: None)
    alternatives = [Alternative(nullcontext, slow, compared=False), Alternative(nullcontext, quick)]
    samples = interleaved(alternatives, Rounds(5), torch.device("cpu"), calls_per_sample=1)
    assert np.isnan(samples[:, 0]).tolist() == [False, False, True, True, True]
    assert not np.isnan(samples[:, 1]).any()
