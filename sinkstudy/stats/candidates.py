"""What might tell, before a head's attention is computed, that it will be a sink on this prompt.

Each candidate gives every later head of every prompt a probability, and is fitted without the prompts it is judged on.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sinkstudy.stats.recommendation import BASE, CANDIDATES
from sinkstudy.stats.resampling import ratio

_ARE_PROBABILITIES = (BASE, "length_and_first_token")


@dataclass(frozen=True)
class Examples:
    """Prompts cut to one length.

    `scores` (prompt, layer, head); `is_sink` (prompt, layer - 1, head) bool, what is to be told: sinks of the layers
    after the first; `first_token` (prompt,) ids; `folds` (prompt,) ints from 0, prompts of one fold are held out
    together; `activation` (prompt, layer): of the first token entering each layer, None where it was not captured.
    """

    scores: np.ndarray
    is_sink: np.ndarray
    first_token: np.ndarray
    folds: np.ndarray
    activation: np.ndarray | None = None


def held_out_probabilities(examples: Examples) -> dict[str, np.ndarray]:
    """By candidate, the probability of each head to be a sink, (prompt, layer - 1, head).

    A candidate that is no probability becomes one by a logistic regression of its own. `all` is one of all others.
    """
    found = {}
    for fold in np.unique(examples.folds):
        train = examples.folds != fold
        values = _values(examples, train)
        features = {name: value[..., None] for name, value in values.items() if name not in _ARE_PROBABILITIES}
        features["all"] = np.stack(list(values.values()), axis=-1)
        values |= {name: _fitted(feature, examples.is_sink, train) for name, feature in features.items()}
        for name, value in values.items():
            found.setdefault(name, np.empty(examples.is_sink.shape))[~train] = value[~train]
    return {name: found[name] for name in CANDIDATES if name in found}


def by_other_folds(values: np.ndarray, folds: np.ndarray, train: np.ndarray) -> np.ndarray:
    """For each prompt, the mean of `values` (prompt, ...) over training prompts that are not of its own fold.

    A value made of the very outcome it is to explain would look better in fitting than it is.
    """
    means = [values[train & (folds != fold)].mean(0) for fold in range(folds.max() + 1)]
    return np.stack(means)[folds]


def _values(examples: Examples, train: np.ndarray) -> dict[str, np.ndarray]:
    """The candidates but `all`, each (prompt, layer - 1, head), made with the outcomes of training prompts alone."""
    scores, is_sink, folds = examples.scores, examples.is_sink, examples.folds
    rate = by_other_folds(is_sink.mean(2), folds, train)  # (prompt, layer - 1)
    found = {
        BASE: _inside(rate, train.sum() * is_sink.shape[2])[:, :, None],
        "record": by_other_folds(scores[:, 1:], folds, train),
        "length_and_first_token": _first_token_rate(examples, train)[:, None, None],
        "first_layer": scores[:, :1],
        "previous_layer": scores[:, :-1],
        "anchor": scores[:, _anchors(scores[train], is_sink[train])],
    }
    if examples.activation is not None:
        found["activation"] = np.log(examples.activation[:, 1:, None])
    return {name: np.broadcast_to(value, is_sink.shape) for name, value in found.items()}


def _first_token_rate(examples: Examples, train: np.ndarray) -> np.ndarray:
    """Share of sinks in training prompts of other folds that begin alike, one average prompt added, (prompt,).

    Prompts here have one length, so this is all that length and first token have to tell.
    """
    share = examples.is_sink.mean((1, 2))
    alike = examples.first_token[:, None] == examples.first_token
    counted = alike & train & (examples.folds[:, None] != examples.folds)
    average = _inside(share[train].mean(), examples.is_sink[train].size)
    return (counted @ share + average) / (counted.sum(1) + 1)


def _anchors(scores: np.ndarray, is_sink: np.ndarray) -> np.ndarray:
    """For each later layer, the earlier one whose scores correlate most with its sinks at the same head indices."""
    x = scores[:, :-1] - scores[:, :-1].mean((0, 2), keepdims=True)
    y = is_sink - is_sink.mean((0, 2), keepdims=True)
    spread = np.sqrt((x**2).sum((0, 2))[:, None] * (y**2).sum((0, 2)))
    together = np.einsum("pah,plh->al", x, y)
    correlation = np.nan_to_num(ratio(together, spread))
    return np.where(np.triu(np.ones_like(spread)), correlation, -np.inf).argmax(0)  # layer l is row l - 1 of is_sink


def _fitted(features: np.ndarray, is_sink: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Probabilities by a logistic regression on training prompts; `features` (prompt, layer - 1, head, feature)."""
    outcome = is_sink[train].ravel()
    if outcome.all() or not outcome.any():
        return np.full(is_sink.shape, _inside(outcome.mean(), outcome.size))
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(features[train].reshape(len(outcome), -1), outcome)
    return model.predict_proba(features.reshape(is_sink.size, -1))[:, 1].reshape(is_sink.shape)


def _inside(share: np.ndarray, cases: int) -> np.ndarray:
    """A share as a probability that is never 0 or 1, because what was not seen in so many cases can still happen."""
    return (share * cases + 0.5) / (cases + 1)
