"""The attention that positions receive from later queries: where sinks are, on the first token or not."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

EPSILON = 0.3  # A position that receives this mean attention is a sink (Gu et al., arXiv 2410.10781).
LATER_QUERIES, LATER_SHARE = 16, 1 / 4


@dataclass(frozen=True)
class Received:
    """The attention that positions receive, as far as tables and pages need it.

    By position: `mean_received` over heads; of the heads, those of which it is a sink (`sink_heads`) and those of which
    it is the candidate that receives most (`strongest_heads`), both 0 where it is no candidate. By head: that candidate
    (`strongest`), what it receives (`strongest_mass`) and what the first token does (`first_mass`).
    """

    mean_received: Annotated[np.ndarray, np.float64, "key"]
    sink_heads: Annotated[np.ndarray, np.int32, "key"]
    strongest_heads: Annotated[np.ndarray, np.int32, "key"]
    strongest: Annotated[np.ndarray, np.int32, "layer head"]
    strongest_mass: Annotated[np.ndarray, np.float32, "layer head"]
    first_mass: Annotated[np.ndarray, np.float32, "layer head"]


def candidates(n: int) -> int:
    """How many of the first positions of `n` tokens have enough later queries to be called sinks.

    A mean over few of them is that of a token's neighbours: LATER_QUERIES at least and LATER_SHARE of the prompt have
    to come after a position, or half of a short prompt.
    """
    return n - min(max(LATER_QUERIES, int(LATER_SHARE * n)), n // 2)


def received(position_mass: np.ndarray) -> Received:
    """From the mean attention that every position receives, (layer, head, key)."""
    n = position_mass.shape[-1]
    eligible = position_mass[..., : candidates(n)]
    strongest = eligible.argmax(-1)
    sinks = (eligible >= EPSILON).sum((0, 1))
    return Received(
        mean_received=position_mass.mean((0, 1), dtype=float),
        sink_heads=np.pad(sinks, (0, n - len(sinks))),
        strongest_heads=np.bincount(strongest.ravel(), minlength=n),
        strongest=strongest,
        strongest_mass=eligible.max(-1),
        first_mass=eligible[..., 0],
    )
