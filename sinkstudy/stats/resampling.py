"""Intervals by resampling prompts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_NUMBERS_AT_ONCE = 1 << 18
_COLUMNS_AT_ONCE = 1 << 11


@dataclass(frozen=True)
class Resampling:
    """How many bootstrap draws and permutations, and the seed of both."""

    bootstrap: int
    permutations: int
    seed: int


def resamples(prompts: int, resampling: Resampling, width: int = 1) -> Iterator[np.ndarray]:
    """How often each prompt is drawn when as many are drawn with replacement, (draw, prompt) float64.

    The draws come in parts of bounded size; `width` is how many numbers the caller makes of each. They depend on the
    seed and the number of prompts alone, not on how many come at once.
    """
    rng = np.random.default_rng(resampling.seed)
    at_once = max(1, _NUMBERS_AT_ONCE // max(width, prompts))
    for start in range(0, resampling.bootstrap, at_once):
        draws = min(at_once, resampling.bootstrap - start)
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws).astype(float)


def ratio_intervals(part: np.ndarray, whole: np.ndarray, resampling: Resampling) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile bootstrap intervals of sum(part) / sum(whole) over prompts, (column,) low and high.

    `part` and `whole` are (prompt, column); all columns share their draws. Draws in which the whole is 0 do not count
    (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). NaN where fewer than two prompts have a whole:
    one prompt does not show how prompts vary.
    """
    ends = np.full((2, part.shape[1]), np.nan)
    usable = np.flatnonzero((whole > 0).sum(0) > 1)
    for start in range(0, len(usable), _COLUMNS_AT_ONCE):
        columns = usable[start : start + _COLUMNS_AT_ONCE]
        parts, wholes = (side[:, columns].astype(float, copy=False) for side in (part, whole))
        draws = resamples(len(part), resampling)
        ends[:, columns] = percentiles(np.concatenate([_ratio(draw @ parts, draw @ wholes) for draw in draws]))
    return ends[0], ends[1]


def percentiles(draws: np.ndarray, error: float = 0.05) -> np.ndarray:
    """Ends of the percentile interval of each column that errs so often, (2, column); undefined draws do not count."""
    tails = [error / 2, 1 - error / 2]
    ends = np.quantile(draws, tails, axis=0)
    # `nanquantile` loops over columns in Python, so it gets only those with an undefined draw.
    undefined = np.isnan(ends[0]) & ~np.isnan(draws).all(0)
    if undefined.any():
        ends[:, undefined] = np.nanquantile(draws[:, undefined], tails, axis=0)
    return ends


def interval_ends(draws: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of draws (draw,) of one number; NaN where none of them is defined."""
    known = draws[~np.isnan(draws)]
    low, high = percentiles(known[:, None])[:, 0] if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
