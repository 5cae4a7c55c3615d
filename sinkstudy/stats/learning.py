"""How many prompts a head's record needs."""

from collections.abc import Iterator

import numpy as np

from sinkstudy.stats.candidates import Examples
from sinkstudy.stats.ranking import area, pairs_won
from sinkstudy.stats.resampling import Resampling, percentiles, resamples

_REPEATS = 8


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
        draws = [area(pairs, draw) for draw in resamples(len(scores), resampling, width=len(scores))]
        low, high = percentiles(np.concatenate(draws))
        auc = float(area(pairs, np.ones((1, len(scores))))[0])
        yield {"training_prompts": size, "auc": auc, "auc_low": float(low), "auc_high": float(high)}
