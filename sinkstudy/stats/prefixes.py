"""The one way in which statistics read attention: captures of one length, at the prefix lengths that they know.

A capture of every query knows all lengths; one of `capture.keep: lengths` those of its grid.
"""

from functools import cached_property

import numpy as np

from sinkstudy.errors import StudyError
from sinkstudy.store import Capture


def prefix_scores(sink_mass: np.ndarray, row_sum: np.ndarray | None = None) -> np.ndarray:
    """Sink score at every prefix length, (..., layer, head, query) float64; index k - 1 is length k.

    The score is sum_i A[i, 0] / sum_ij A[i, j] (the original study's; Gu et al., arXiv 2410.10781, use the same
    quantity at threshold 0.3). `row_sum` None means that rows sum to 1.
    """
    total = np.arange(1, sink_mass.shape[-1] + 1) if row_sum is None else np.cumsum(row_sum, -1, dtype=float)
    return np.cumsum(sink_mass, axis=-1, dtype=float) / total


class Prefixes:
    """`members`: captures of one length and one kind. `lengths`: those known, ascending, up to the whole prompt's.

    Arrays begin with the axis prompt. Raises StudyError where a length or a threshold is asked for that was not kept.
    """

    def __init__(self, members: list[Capture]):
        self.members, self.n_tokens = members, members[0].n_tokens
        self._kept = members[0].kept
        self.lengths = np.arange(1, self.n_tokens + 1) if self._kept is None else self._kept.lengths.astype(int)

    @cached_property
    def scores(self) -> np.ndarray:
        """Sink scores at `lengths`, (prompt, layer, head, length) float64."""
        if self._kept is None:
            return prefix_scores(self._stack("sink_mass"), self._stack("row_sum"))
        mean, row_sum = self._stack("mean_sink_mass"), self._stack("mean_row_sum")
        return mean if row_sum is None else mean / row_sum

    def at(self, n: int) -> np.ndarray:
        """Sink scores at length `n`, (prompt, layer, head)."""
        return self.scores[..., self.place(n)]

    def place(self, n: int) -> int:
        """Where a length is along the axis length."""
        place = int(np.searchsorted(self.lengths, n))
        if place == len(self.lengths) or self.lengths[place] != n:
            raise StudyError(
                f"prompt {self.members[0].prompt!r}: its capture has no masses at {n} tokens, which is not among the "
                "lengths that were kept; give that length in the configuration, or capture.keep: queries."
            )
        return place

    def mean(self, name: str, n: int, first: int = 0) -> np.ndarray:
        """The mean of `sink_mass`, `sink_share` or `key_mass` over the first `n` queries without the first `first` of
        them, (prompt, layer, head, ...)."""
        if self._kept is None:
            values = self._shares if name == "sink_share" else self._stack(name)
            return values[:, :, :, first:n].mean(3, dtype=float)
        values = self._stack(f"mean_{name}")
        values = self._stack("mean_sink_mass") if values is None else values  # the share, where rows sum to 1
        whole = n * values[:, :, :, self.place(n)].astype(float)
        return (whole - first * values[:, :, :, self.place(first)] if first else whole) / (n - first)

    def queries_above(self, threshold: float, n: int) -> np.ndarray:
        """How many of the first `n` queries, of all heads together, put more than `threshold` of what they pay on the
        first token, (prompt,)."""
        if self._kept is None:
            return (self._shares[..., :n] > threshold).sum((1, 2, 3))
        at = np.flatnonzero(self._kept.thresholds == threshold)
        if not len(at):
            raise StudyError(
                f"prompt {self.members[0].prompt!r}: its capture counted no queries above {threshold:g}, which was not "
                "among sinks.thresholds then; delete the captures and run again."
            )
        return self._stack("queries_above")[:, at[0], self.place(n)]

    @cached_property
    def _shares(self) -> np.ndarray:
        mass, row_sum = self._stack("sink_mass").astype(float), self._stack("row_sum")
        return mass if row_sum is None else mass / row_sum

    def _stack(self, name: str) -> np.ndarray | None:
        holders = self.members if self._kept is None else [capture.kept for capture in self.members]
        values = [getattr(holder, name, None) for holder in holders]
        return None if values[0] is None else np.stack(values)
