"""A simulator fitted to captured models, with the curve of uniform attention built in.

The score of a head at n tokens is modelled on the log-odds scale as that of uniform attention plus a level:
logit(score) = logit(H_n / n) + level(layer, head, n) + spread(layer, head) * z, with z standard normal per prompt and
head. The level, a mean over prompts, holds all three effects: its mean over the heads of a layer is the layer profile,
a head's departure from that its tendency, and its course over n the effect of length beyond uniform attention's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit, ndtr

from sinkstudy.errors import StudyError
from sinkstudy.measures.captured import Capture
from sinkstudy.measures.kept import GRID
from sinkstudy.simulation.formula import SimulatedSinks
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.scores import null_score, scored

_CLOSEST = 1e-4  # scores are clipped to this distance from 0 and 1, where log-odds are infinite


@dataclass(frozen=True)
class Calibration:
    """`lengths` (length,); `level` (length, layer, head), log-odds over uniform attention's; `spread` (layer, head)."""

    lengths: np.ndarray
    level: np.ndarray
    spread: np.ndarray

    def level_at(self, n: int) -> np.ndarray:
        """(layer, head) at a length of at least 2, linear in log n; beyond the fitted lengths that of the nearest."""
        at = np.interp(np.log(n), np.log(self.lengths), np.arange(len(self.lengths)))
        low = int(at)
        high = min(low + 1, len(self.lengths) - 1)
        return self.level[low] + (at - low) * (self.level[high] - self.level[low])

    def probability(self, n: int, threshold: float) -> np.ndarray:
        """Probability that a head is a sink on a prompt of `n` tokens, (layer, head)."""
        if n == 1:
            return np.ones(self.spread.shape)  # a single token can only attend to itself
        return ndtr((self.level_at(n) - (_logit(threshold) - _logit(null_score(n)))) / self.spread)

    def scaled(self, layers: int, heads: int, rng: np.random.Generator) -> "Calibration":
        """The same for a model of another shape.

        Depth is relative, with log-odds interpolated between layers. Each head index copies a random fitted one, the
        same in all layers, so that first-layer sinks predict later layers as in the fitted model.
        """
        fitted_layers, fitted_heads = self.spread.shape
        depth = np.linspace(0, fitted_layers - 1, layers)
        low = depth.astype(int)
        high = np.minimum(low + 1, fitted_layers - 1)
        after = rng.integers(0, fitted_heads, heads)

        def stretched(values: np.ndarray) -> np.ndarray:
            values = values[..., after]  # (..., fitted layer, head)
            return values[..., low, :] + (depth - low)[:, None] * (values[..., high, :] - values[..., low, :])

        return Calibration(self.lengths, stretched(self.level), stretched(self.spread))


class Calibrator:
    """Sums over prompts from which a calibration follows; nothing grows with the number of prompts."""

    def __init__(self) -> None:
        self._count = np.zeros(len(GRID))
        self._sum = self._squares = 0.0

    def add(self, prefixes: Prefixes) -> None:
        """Captures of one length; the lengths of GRID are fitted, and others interpolated."""
        reached = GRID[prefixes.n_tokens >= GRID]
        at = prefixes.scores[..., [prefixes.place(n) for n in reached]]  # (prompt, layer, head, length)
        odds = np.moveaxis(_logit(at) - _logit(null_score(reached)), -1, 1)  # (prompt, length, layer, head)
        beyond = ((0, len(GRID) - len(reached)), (0, 0), (0, 0))
        self._count[: len(reached)] += len(prefixes.members)
        self._sum = self._sum + np.pad(odds.sum(0), beyond)
        self._squares = self._squares + np.pad((odds**2).sum(0), beyond)

    def fitted(self) -> Calibration:
        """Raises StudyError when no prompt has two tokens."""
        used = self._count > 0
        if not used.any():
            raise StudyError("a simulator needs captured prompts of at least two tokens; give longer prompts.")
        count = self._count[used, None, None]
        level = self._sum[used] / count
        spread = np.sqrt(np.maximum(self._squares[used] - count * level**2, 0).sum(0) / count.sum())
        return Calibration(GRID[used], level, np.maximum(spread, 1e-6))


def calibrate(captures: Iterable[Capture]) -> Calibration:
    """Fit all captures of one model."""
    calibrator = Calibrator()
    for _, prefixes in scored(captures):
        calibrator.add(prefixes)
    return calibrator.fitted()


def simulate_calibrated(
    calibration: Calibration, layers: int, heads: int, lengths: list[int], seed: int, threshold: float
) -> list[SimulatedSinks]:
    """One simulated model of `layers` x `heads` at several prompt lengths; all lengths share a head's draw."""
    rng = np.random.default_rng(seed)
    model = calibration.scaled(layers, heads, rng)
    score_draw = rng.standard_normal((layers, heads))
    simulated = []
    for n in lengths:
        score = np.ones((layers, heads))
        if n > 1:
            score = expit(_logit(null_score(n)) + model.level_at(n) + model.spread * score_draw)
        simulated.append(SimulatedSinks(n, model.probability(n, threshold), score >= threshold, score))
    return simulated


def _logit(probability: float | np.ndarray) -> np.ndarray:
    return logit(np.clip(probability, _CLOSEST, 1 - _CLOSEST))
