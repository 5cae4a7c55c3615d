"""What predictions of sinks are worth on prompts they were not fitted to, with intervals over these prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sinkstudy.stats.candidates import Examples
from sinkstudy.stats.recommendation import BASE
from sinkstudy.stats.resampling import Resampling, once_and_drawn, percentiles, ratio, ratio_intervals

CALLED_AT = 0.5  # a head is called a sink from this probability on, which errs least often
_SHARES = {"log_loss": ("log_loss", "cells"), "brier": ("brier", "cells")}
_SHARES |= {"precision": ("hits", "called"), "recall": ("hits", "sinks")}
_COUNTS = ("log_loss", "brier", "hits", "called", "sinks", "cells")
_COMPARED = ("gain", "behind")
_REPEATS = 8
COLUMNS = ["base_rate", *(f"{name}{end}" for name in ("auc", *_SHARES, *_COMPARED) for end in ("", "_low", "_high"))]


@dataclass(frozen=True)
class Judged:
    """Predictions of several candidates, reduced to what can be added up.

    `prompts`: positions in the study. `pairs` (candidate, 2, prompt, prompt), see `pairs_won`; `counts`
    (candidate, prompt, count): sums over the heads of a prompt, in the order of `_COUNTS`.
    """

    names: list[str]
    folds: int
    prompts: np.ndarray
    pairs: np.ndarray
    counts: np.ndarray


def judged(probabilities: Mapping[str, np.ndarray], examples: Examples, prompts: np.ndarray) -> Judged:
    """`probabilities`: by candidate, (prompt, layer - 1, head)."""
    is_sink, counts = examples.is_sink, []
    for probability in probabilities.values():
        of_truth = np.where(is_sink, probability, 1 - probability)
        called = probability >= CALLED_AT
        log_loss, brier = -np.log(of_truth.clip(np.finfo(float).tiny)), (1 - of_truth) ** 2
        every = log_loss, brier, called & is_sink, called, is_sink, np.ones(is_sink.shape)
        counts.append(np.stack([part.sum((1, 2), dtype=float) for part in every], axis=1))
    pairs = [pairs_won(probability, is_sink, examples.folds) for probability in probabilities.values()]
    folds = int(examples.folds.max()) + 1
    return Judged(list(probabilities), folds, prompts, np.stack(pairs), np.stack(counts))


def together(parts: list[Judged]) -> Judged:
    """As one: pairs are still of heads at the same length."""
    prompts = np.unique(np.concatenate([part.prompts for part in parts]))
    names = parts[0].names
    pairs = np.zeros((len(names), 2, len(prompts), len(prompts)))
    counts = np.zeros((len(names), len(prompts), len(_COUNTS)))
    for part in parts:
        at = np.searchsorted(prompts, part.prompts)
        pairs[:, :, at[:, None], at] += part.pairs
        counts[:, at] += part.counts
    return Judged(names, min(part.folds for part in parts), prompts, pairs, counts)


def rows(found: Judged, resampling: Resampling) -> Iterator[dict[str, object]]:
    """A row per candidate: area under the ROC curve, log loss, Brier score, precision and recall at CALLED_AT.

    `gain`: area less that of the layer's base rate, or less one half where that is greater; `behind`: area of the best
    candidate less this one's. Both are paired by prompt. Their intervals hold for all candidates at once (Bonferroni),
    and are wider than the draws by what folds have in common: any two share training prompts, which draws do not show
    (Nadeau and Bengio, Machine Learning 52, 2003, equation 9).
    """
    count = dict(zip(_COUNTS, found.counts.transpose(2, 1, 0), strict=True))  # each (prompt, candidate)
    names = found.names
    points = area(found.pairs, once_and_drawn(len(found.prompts), resampling))  # as measured, then by draw
    base, best = names.index(BASE), points[0].argmax()
    columns = {"base_rate": (count["sinks"].sum(0) / count["cells"].sum(0),)}
    columns["auc"] = points[0], *percentiles(points[1:])
    for name, (part, whole) in _SHARES.items():
        value = ratio(count[part].sum(0), count[whole].sum(0))
        columns[name] = value, *ratio_intervals(count[part], count[whole], resampling)
    differences = {"gain": points - np.maximum(points[:, [base]], 0.5), "behind": points[:, [best]] - points}
    wider = np.sqrt(1 + found.folds / (found.folds - 1))
    for name, (value, *others) in differences.items():
        ends = percentiles(np.array(others), error=0.05 / (len(names) - 1))
        columns[name] = value, *(value + wider * (ends - value))
    for i, name in enumerate(names):
        yield {"predictor": name} | {
            f"{column}{end}": values[i]
            for column, several in columns.items()
            for end, values in zip(("", "_low", "_high"), several, strict=False)
        }


def learning_curve(examples: Examples, resampling: Resampling) -> Iterator[dict[str, float]]:
    """Area under the ROC curve of the mean score over 1, 2, 4, ... other prompts, and over all of the other folds.

    Each is over a number of draws of these prompts, with an interval over the prompts it is judged on.
    """
    rng = np.random.default_rng(resampling.seed)
    scores, folds = examples.scores[:, 1:], examples.folds
    others = [np.flatnonzero(folds != fold) for fold in range(folds.max() + 1)]
    most = min(map(len, others))
    for size in [*(2**k for k in range(most.bit_length()) if 2**k < most), most]:
        pairs = np.zeros((2, len(scores), len(scores)))
        for _ in range(_REPEATS if size < most else 1):
            record = np.stack([scores[rng.permutation(train)[:size]].mean(0) for train in others])
            pairs += pairs_won(record[folds], examples.is_sink, folds)
        auc, *drawn = area(pairs, once_and_drawn(len(scores), resampling))
        low, high = percentiles(np.array(drawn))
        yield {"training_prompts": size, "auc": auc, "auc_low": low, "auc_high": high}


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


def area(pairs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the curve, (draw, ...), from `pairs` (..., 2, prompt, prompt) and how often a draw counts each prompt,
    `counts` (draw, prompt). NaN in draws without a sink or without another head."""
    weights = counts.astype(float)
    won, every = (np.einsum("dp,...pq,dq->d...", weights, pairs[..., i, :, :], weights, optimize=True) for i in (0, 1))
    return ratio(won, every)
