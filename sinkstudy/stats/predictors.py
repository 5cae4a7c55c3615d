"""How well one can tell, before computing a head's attention, whether it is a sink on a prompt not seen before."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sinkstudy.stats.candidates import Examples, held_out_probabilities
from sinkstudy.stats.judging import COLUMNS, Judged, judged, learning_curve, rows, together
from sinkstudy.stats.recommendation import CANDIDATES
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import null_score

FOLDS = 5
FEWEST_PROMPTS = 3  # one to judge on, and two so that what is made of one is fitted on the other
MOST_PROMPTS = 256  # of more, an even sample: intervals are narrow by then, and fits go on taking longer
EXCESS = 0.5  # the excess score from which a head is a sink whatever the length


def predictor_tables(
    reduced: Reduced,
    model: str,
    lengths: list[int],
    hold_out: str,
    resampling: Resampling,
    measures: Sequence[str] = ("score", "excess"),
) -> dict[str, pd.DataFrame]:
    """`predictors`: a row per target, length and candidate; with an empty length, all lengths together.
    `learning`: the area under the curve of a head's record, by the number of prompts it is made of.

    Targets are sinks by score at each threshold and by excess at 0.5, in the layers after the first; `measures` may
    leave out one of the two. Lengths that fewer than FEWEST_PROMPTS prompts (or sets, where `hold_out` is `set`: all
    prompts of a set are held out together) reach have no rows, nor has a model of one layer. Where all heads meet the
    target, or none, nothing can be told apart: `undefined` says so.
    """
    table, curves = [], []
    targets = [*(("score", threshold) for threshold in reduced.thresholds), ("excess", EXCESS)]
    for measure, threshold in (target for target in targets if target[0] in measures):
        known: list[Judged] = []
        target = {"model": model, "measure": measure, "threshold": threshold}
        for n, prompts, examples in _examples(reduced, lengths, measure, threshold, hold_out):
            at = target | {"n_tokens": n, "prompts": len(prompts)}
            share = examples.is_sink.mean()
            if share in (0, 1):
                why = f"{'every' if share else 'no'} head is a sink"
                names = [name for name in CANDIDATES if name != "activation" or examples.activation is not None]
                table += [at | {"predictor": name, "base_rate": share, "undefined": why} for name in names]
                continue
            known.append(judged(held_out_probabilities(examples), examples, prompts))
            table += [at | row for row in rows(known[-1], resampling)]
            curves += [at | row for row in learning_curve(examples, resampling)]
        if known:
            every = together(known)
            table += [target | {"prompts": len(every.prompts)} | row for row in rows(every, resampling)]
    order = ["model", "measure", "threshold", "n_tokens", "predictor", "prompts"]
    keys = ["model", "measure", "threshold", "n_tokens", "prompts", "training_prompts", "auc", "auc_low", "auc_high"]
    return {
        "predictors": pd.DataFrame(table, columns=[*order, *COLUMNS, "undefined"]).astype({"n_tokens": "Int64"}),
        "learning": pd.DataFrame(curves, columns=keys),
    }


def _examples(
    reduced: Reduced, lengths: Sequence[int], measure: str, threshold: float, hold_out: str
) -> Iterator[tuple[int, np.ndarray, Examples]]:
    """Each length, with the positions of its prompts in the study."""
    if reduced.shape[0] == 1:  # a single layer has none after it
        return
    activation = np.concatenate([reduced.rows("activation", block) for block in reduced.blocks(reduced.reaching(None))])
    known = (np.isfinite(activation) & (activation > 0))[reduced.reaching(min(lengths))].all()
    for n in lengths:
        prompts = reduced.reaching(n)
        if not len(prompts):
            continue
        prompts = prompts[np.unique(np.linspace(0, len(prompts) - 1, MOST_PROMPTS).round().astype(int))]
        groups = pd.factorize(reduced.sets[prompts])[0] if hold_out == "set" else np.arange(len(prompts))
        if groups.max() + 1 < FEWEST_PROMPTS:
            continue
        scores, null = reduced.rows(f"scores/{n}", prompts), float(null_score(n))
        cut = threshold if measure == "score" else null + threshold * (1 - null)
        tokens, entering = reduced.rows("first_token", prompts), activation[prompts] if known else None
        yield n, prompts, Examples(scores, scores[:, 1:] >= cut, tokens, groups % FOLDS, entering)
