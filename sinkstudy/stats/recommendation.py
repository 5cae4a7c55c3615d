"""Which of the candidates that tell later sinks one should use."""

import pandas as pd

BASE = "layer_base_rate"
# From the simplest to use: a number per layer, a table of heads, the prompt, and what must be measured on it.
CANDIDATES = (
    BASE,
    "record",
    "length_and_first_token",
    "first_layer",
    "activation",
    "previous_layer",
    "anchor",
    "all",
)
CLEAR_GAIN = 0.01  # of area under the ROC curve; less is no reason to prefer a predictor


def over_all_lengths(predictors: pd.DataFrame) -> pd.DataFrame:
    """The rows of one target without a length, by candidate and from the simplest; none where nothing was judged."""
    every = predictors[predictors["n_tokens"].isna()].set_index("predictor")
    return every.loc[[name for name in CANDIDATES if name in every.index]]


def recommended(every: pd.DataFrame) -> str | None:
    """The simplest candidate that clearly gains on the base rate of the layer, and on which none clearly gains.

    `every`: see `over_all_lengths`. Clearly: by CLEAR_GAIN at least, with an interval above 0.
    """
    gains = (every["gain_low"] > 0) & (every["gain"] >= CLEAR_GAIN)
    beaten = (every["behind_low"] > 0) & (every["behind"] >= CLEAR_GAIN)
    fit = every.index[gains & ~beaten]
    return fit[0] if len(fit) else None
