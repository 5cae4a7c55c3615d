"""What predictions of sinks are worth on prompts they were not fitted to, with intervals over these prompts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from sinkstudy.stats.candidates import Examples
from sinkstudy.stats.ranking import area, pairs_won
from sinkstudy.stats.recommendation import BASE
from sinkstudy.stats.resampling import Resampling, percentiles, ratio_intervals, resamples

CALLED_AT = 0.5  # a head is called a sink from this probability on, which errs least often
_SHARES = {"log_loss": ("log_loss", "cells"), "brier": ("brier", "cells")}
_SHARES |= {"precision": ("hits", "called"), "recall": ("hits", "sinks")}
_COUNTS = ("log_loss", "brier", "hits", "called", "sinks", "cells")
_COMPARED = ("gain", "behind")
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
        every = (
            -np.log(of_truth.clip(np.finfo(float).tiny)),
            (1 - of_truth) ** 2,
            called & is_sink,
            called,
            is_sink,
            np.ones(is_sink.shape),
        )
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
    names, prompts = found.names, len(found.prompts)
    auc = area(found.pairs, np.ones((1, prompts)))[0]
    draws = np.concatenate(
        [area(found.pairs, draw) for draw in resamples(prompts, resampling, width=len(names) * prompts)]
    )
    base, best = names.index(BASE), int(auc.argmax())
    columns = {"base_rate": (count["sinks"].sum(0) / count["cells"].sum(0),)}
    columns["auc"] = auc, *percentiles(draws)
    for name, (part, whole) in _SHARES.items():
        total = count[whole].sum(0)
        ratio = np.divide(count[part].sum(0), total, out=np.full(total.shape, np.nan), where=total > 0)
        columns[name] = ratio, *ratio_intervals(count[part], count[whole], resampling)
    points = np.vstack([auc, draws])  # as measured, then by draw
    for name, difference in (
        ("gain", points - np.maximum(points[:, [base]], 0.5)),
        ("behind", points[:, [best]] - points),
    ):
        ends = percentiles(difference[1:], error=0.05 / (len(names) - 1))
        columns[name] = (
            difference[0],
            *(difference[0] + np.sqrt(1 + found.folds / (found.folds - 1)) * (ends - difference[0])),
        )
    for i, name in enumerate(names):
        yield {"predictor": name} | {
            f"{column}{end}": float(values[i])
            for column, several in columns.items()
            for end, values in zip(("", "_low", "_high"), several, strict=False)
        }
