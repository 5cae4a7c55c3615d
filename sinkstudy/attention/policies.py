"""Choosing the heads a plan replaces, from the score tables of calibration prompts."""

import pandas as pd

from sinkstudy.attention.plan import Plan


def first_layer(threshold: float, max_tokens: int | None) -> Plan:
    """The original study's policy: decided at inference from the first layer's attention to this very input."""
    return Plan(first_layer_threshold=threshold, max_tokens=max_tokens, policy="first_layer")


def consistent(scores: pd.DataFrame, share: float, min_tokens: int, max_tokens: int | None) -> Plan:
    """Heads that are sinks in at least `share` of the prompts of at least `min_tokens` tokens.

    Short prompts are left out because the raw score of any head is high there. `scores` has the columns n_tokens,
    layer, head, is_sink. With no prompt that long the plan is empty.
    """
    long_enough = scores[scores["n_tokens"] >= min_tokens]
    shares = long_enough.groupby(["layer", "head"])["is_sink"].mean()
    chosen = shares[shares >= share].index
    heads: dict[int, list[int]] = {}
    for layer, head in chosen:
        heads.setdefault(int(layer), []).append(int(head))
    return Plan(heads=heads, max_tokens=max_tokens, policy="consistent")
