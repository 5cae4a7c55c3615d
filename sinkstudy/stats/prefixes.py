"""The one way in which statistics read attention: captures of one length, at the prefix lengths that they know.

A capture of every query knows all lengths; one of `capture.keep: lengths` those of its grid.
"""

from functools import cached_property

import numpy as np

from sinkstudy.errors import StudyError
from sinkstudy.measures.captured import Capture
from sinkstudy.measures.scores import prefix_scores, sink_counts


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
        return self._stack("queries_above")[:, self._level(threshold), self.place(n)]

    def mean_scores(self) -> np.ndarray:
        """The mean score of all heads at every length up to the whole prompt's, (prompt, query)."""
        return self.scores.mean((1, 2)) if self._kept is None else self._stack("mean_score")

    def sink_counts(self, threshold: float) -> np.ndarray:
        """How many heads are sinks at each of these lengths, (prompt, query, 3), see `sinkstudy.measures.scores`."""
        if self._kept is None:
            return sink_counts(self.scores >= threshold)
        return self._stack("sink_counts")[:, self._level(threshold)]

    def _level(self, threshold: float) -> int:
        at = np.flatnonzero(self._kept.thresholds == threshold)
        if not len(at):
            raise StudyError(
                f"prompt {self.members[0].prompt!r}: its capture counted no sinks at {threshold:g}, which was not "
                "among sinks.thresholds then; delete the captures and run again."
            )
        return int(at[0])

    @cached_property
    def _shares(self) -> np.ndarray:
        mass, row_sum = self._stack("sink_mass").astype(float), self._stack("row_sum")
        return mass if row_sum is None else mass / row_sum

    def _stack(self, name: str) -> np.ndarray | None:
        holders = self.members if self._kept is None else [capture.kept for capture in self.members]
        values = [getattr(holder, name, None) for holder in holders]
        return None if values[0] is None else np.stack(values)
