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


@lru_cache(maxsize=1)
def draws(prompts: int, resampling: Resampling) -> np.ndarray:
    """How often each prompt is drawn when as many are drawn with replacement, (draw, prompt).

    A byte holds each, because no prompt is drawn 256 times. The draws depend on the seed and the number of prompts.
    """
    rng, drawn = np.random.default_rng(resampling.seed), np.empty((resampling.bootstrap, prompts), np.uint8)
    at_once = max(1, _NUMBERS_AT_ONCE // prompts)
    for part in np.split(drawn, range(at_once, len(drawn), at_once)):
        part[:] = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=len(part))
    return drawn


def once_and_drawn(prompts: int, resampling: Resampling) -> np.ndarray:
    """As `draws`, after a row that counts each prompt once: what comes of it is the value itself."""
    return np.concatenate([np.ones((1, prompts), np.uint8), draws(prompts, resampling)])


def sums(blocks: Blocks) -> list[np.ndarray]:
    """The sums over all prompts of each array of a block, float64."""
    return _added([one.sum(0, dtype=float) for one in block] for block in blocks())


def drawn_sums(blocks: Blocks, drawn: np.ndarray) -> list[np.ndarray]:
    """The sums over the prompts of each draw, (draw, column) float64 for each array (prompt, column) of a block.

    `drawn`: as `draws` gives it, some rows of that, or how much each prompt counts for.
    """

    def weighted() -> Iterator[list[np.ndarray]]:
        done = 0
        for block in blocks():
            weights = drawn[:, done : done + len(block[0])].astype(float)
            done += len(block[0])
            yield [weights @ one for one in block]

    return _added(weighted())


def ratio_intervals(part: np.ndarray, whole: np.ndarray, resampling: Resampling) -> np.ndarray:
    """95% percentile bootstrap intervals of sum(part) / sum(whole) over prompts, (2, column): low and high ends.

    `part` and `whole` are (prompt, column); all columns share their draws. Draws in which the whole is 0 do not count
    (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13). NaN where fewer than two prompts have a whole:
    one prompt does not show how prompts vary.
    """
    cuts = range(_PROMPTS_AT_ONCE, len(part), _PROMPTS_AT_ONCE)
    return ratio_intervals_of(lambda: zip(np.split(part, cuts), np.split(whole, cuts), strict=True), resampling)


def ratio_intervals_of(blocks: Blocks, resampling: Resampling) -> np.ndarray:
    """As `ratio_intervals`, of blocks (part, whole)."""
    prompts, wholes = sums(lambda: ((np.ones((len(whole), 1)), whole > 0) for _, whole in blocks()))
    ends, usable = np.full((2, len(wholes)), np.nan), np.flatnonzero(wholes > 1)
    for start in range(0, len(usable), _COLUMNS_AT_ONCE):
        columns = usable[start : start + _COLUMNS_AT_ONCE]
        drawn = drawn_sums(partial(_columns_of, blocks, columns), draws(int(prompts[0]), resampling))
        ends[:, columns] = percentiles(ratio(*drawn))
    return ends


def _columns_of(blocks: Blocks, columns: np.ndarray) -> Iterator[list[np.ndarray]]:
    for block in blocks():
        yield [side[:, columns] for side in block]


def percentiles(values: np.ndarray, error: float = 0.05) -> np.ndarray:
    """Ends of the percentile interval of each column that errs so often, from `values` (draw, column), (2, column).

    Undefined values do not count.
    """
    tails = [error / 2, 1 - error / 2]
    ends = np.quantile(values, tails, axis=0)
    # `nanquantile` loops over columns in Python, so it gets only those with an undefined draw.
    undefined = np.isnan(ends[0]) & ~np.isnan(values).all(0)
    if undefined.any():
        ends[:, undefined] = np.nanquantile(values[:, undefined], tails, axis=0)
    return ends


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _added(several: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    total: list[np.ndarray] = []
    for arrays in several:
        total = [np.add(one, other, out=one) for one, other in zip(total, arrays, strict=True)] if total else arrays
    return total
