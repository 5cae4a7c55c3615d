"""Intervals by resampling prompts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

# Each call goes through all prompts anew, a bounded number at a time; the first axis of every array is that of prompts.
Blocks = Callable[[], Iterable[Sequence[np.ndarray]]]
_NUMBERS_AT_ONCE = 1 << 18
_COLUMNS_AT_ONCE = 1 << 11
_PROMPTS_AT_ONCE = 1 << 10


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
    at_once = max(1, _NUMBERS_AT_ONCE // max(width, prompts))
    for start in range(0, resampling.bootstrap, at_once):
        yield _drawn(prompts, resampling)[start : start + at_once].astype(float)


@lru_cache(maxsize=1)
def _drawn(prompts: int, resampling: Resampling) -> np.ndarray:
    """All draws, (draw, prompt), in a byte each: no prompt is drawn 256 times."""
    rng, drawn = np.random.default_rng(resampling.seed), np.empty((resampling.bootstrap, prompts), np.uint8)
    at_once = max(1, _NUMBERS_AT_ONCE // prompts)
    for part in np.split(drawn, range(at_once, len(drawn), at_once)):
        part[:] = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=len(part))
    return drawn


def sums(blocks: Blocks) -> list[np.ndarray]:
    """The sums over all prompts of each array of a block, float64."""
    return _added([one.sum(0, dtype=float) for one in block] for block in blocks())


def drawn_sums(blocks: Blocks, prompts: int, resampling: Resampling, draws: slice = slice(None)) -> list[np.ndarray]:
    """The sums over the prompts of each draw, (draw, column) float64 for each array (prompt, column) of a block."""
    return _weighted(blocks, _drawn(prompts, resampling)[draws], 1)


def drawn_means(blocks: Blocks, prompts: int, resampling: Resampling) -> list[np.ndarray]:
    """As `drawn_sums`, means, the first of them of all prompts as they are; of a single prompt nothing is drawn."""
    drawn = _drawn(prompts, resampling)[: resampling.bootstrap if prompts > 1 else 0]
    return _weighted(blocks, np.concatenate([np.ones((1, prompts), np.uint8), drawn]), prompts)


def _weighted(blocks: Blocks, counts: np.ndarray, over: int) -> list[np.ndarray]:
    """Sums over all prompts, each as often as `counts` (row, prompt) says and over a number, (row, column)."""

    def weighted() -> Iterator[list[np.ndarray]]:
        done = 0
        for block in blocks():
            weights = counts[:, done : done + len(block[0])] / over
            done += len(block[0])
            yield [weights @ one for one in block]

    return _added(weighted())


def ratio_intervals(part: np.ndarray, whole: np.ndarray, resampling: Resampling) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile bootstrap intervals of sum(part) / sum(whole) over prompts, (column,) low and high.

    `part` and `whole` are (prompt, column); all columns share their draws. Draws in which the whole is 0 do not count
    (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). NaN where fewer than two prompts have a whole:
    one prompt does not show how prompts vary.
    """

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(part), _PROMPTS_AT_ONCE):
            block = slice(start, start + _PROMPTS_AT_ONCE)
            yield part[block], whole[block]

    return ratio_intervals_of(blocks, resampling)


def ratio_intervals_of(blocks: Blocks, resampling: Resampling) -> tuple[np.ndarray, np.ndarray]:
    """As `ratio_intervals`, of blocks (part, whole)."""
    prompts, wholes = sums(lambda: ((np.ones((len(whole), 1)), whole > 0) for _, whole in blocks()))
    ends, usable = np.full((2, len(wholes)), np.nan), np.flatnonzero(wholes > 1)
    for start in range(0, len(usable), _COLUMNS_AT_ONCE):
        columns = usable[start : start + _COLUMNS_AT_ONCE]
        drawn = drawn_sums(partial(_columns_of, blocks, columns), int(prompts[0]), resampling)
        ends[:, columns] = percentiles(ratio(*drawn))
    return ends[0], ends[1]


def _columns_of(blocks: Blocks, columns: np.ndarray) -> Iterator[list[np.ndarray]]:
    for block in blocks():
        yield [side[:, columns] for side in block]


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


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _added(several: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    total: list[np.ndarray] = []
    for arrays in several:
        total = [np.add(one, other, out=one) for one, other in zip(total, arrays, strict=True)] if total else arrays
    return total
