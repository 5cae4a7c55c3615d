"""How well numbers put sinks above other heads: the area under the ROC curve, for any reweighting of the prompts."""

import numpy as np


def pairs_won(values: np.ndarray, is_sink: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Pairs of a sink and another head by their prompts, (2, prompt of the sink, prompt of the other) float64.

    First the pairs in which the sink has the greater value (a tie counts half), then all pairs. Only prompts of one
    fold are compared, because values of different fits have no common scale. With prompts counted w times, the area
    is (w' won w) / (w' all w): one matrix serves all draws of a bootstrap.
    `values`, `is_sink` (prompt, ...); `folds` (prompt,).
    """
    pairs = np.zeros((2, len(folds), len(folds)))
    for fold in np.unique(folds):
        members = np.flatnonzero(folds == fold)
        sink = is_sink[members].reshape(len(members), -1)
        _, rank = np.unique(values[members].reshape(sink.shape), return_inverse=True)
        places = rank.reshape(sink.shape) * len(members) + np.arange(len(members))[:, None]
        size = (rank.max() + 1) * len(members)
        sinks, others = (  # (rank, prompt)
            np.bincount(places[which], minlength=size).reshape(-1, len(members)).astype(float)
            for which in (sink, ~sink)
        )
        below = others.cumsum(0) - others / 2
        pairs[:, members[:, None], members] = sinks.T @ below, np.outer(sinks.sum(0), others.sum(0))
    return pairs


def area(pairs: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Area under the curve, (draw, ...), from `pairs` (..., 2, prompt, prompt) and how often a draw has each prompt.

    NaN in draws without a sink or without another head.
    """
    won, every = (np.einsum("dp,...pq,dq->d...", draws, pairs[..., i, :, :], draws, optimize=True) for i in (0, 1))
    return np.divide(won, every, out=np.full(won.shape, np.nan), where=every > 0)
