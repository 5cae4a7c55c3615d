"""Policy `budget`: windows for the KV heads that cost least, until a stated KL divergence is spent.

A KV head goes with all query heads that read it, because only then does its cache shrink. All of them do the same work,
so that the cheapest per work saved are the cheapest.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.policies import mean_kl

STRATEGY = "sink_window"
_SEPARATOR = "\n\n"
# Of causal attention to n tokens a window of w leaves a share of 1 - (1 - w / n)^2, half of it at this n / w.
_HALVES_WORK = 1 / (1 - 0.5**0.5)


def window_plan(sink_tokens: int, window: int, max_tokens: int | None = None) -> Plan:
    """A plan without heads yet; shorter prompts than those whose work it halves run unchanged, as they gain nothing."""
    return Plan(
        strategy=STRATEGY,
        min_tokens=math.ceil(_HALVES_WORK * (sink_tokens + window)),
        max_tokens=max_tokens,
        sink_tokens=sink_tokens,
        window=window,
        policy="budget",
    )


def calibration_texts(texts: Sequence[str]) -> tuple[str, str]:
    """Texts joined to two long ones, to fit a plan to and to check it on: the longest first, dealt in turn. A single
    text is cut in half."""
    if len(texts) == 1:
        return texts[0][: len(texts[0]) // 2], texts[0][len(texts[0]) // 2 :]
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return _SEPARATOR.join(ordered[::2]), _SEPARATOR.join(ordered[1::2])


def budget(model: PreTrainedModel, plan: Plan, costs: pd.DataFrame, check_ids: Tensor, limit: float) -> Plan:
    """`plan` with the KV heads that cost at most `limit` nats per token together.

    `costs`: rows of `head_costs`. Estimates add up costs as if heads did not interact, so the divergence is measured on
    `check_ids` (1, query), which the costs were not estimated on; where it exceeds the limit, the plan is cut back.
    Without heads, for a text shorter than the plan's `min_tokens`.
    """
    if not plan.covers(check_ids.shape[1]):
        return plan
    costs = costs[costs["strategy"] == plan.strategy]
    of_kv = costs.drop_duplicates(["layer", "kv_head"]).sort_values(["kv_head_cost", "layer", "kv_head"])
    spent, allowed = of_kv["kv_head_cost"].cumsum().to_numpy(), limit
    count = int(np.searchsorted(spent, allowed, side="right"))
    while count:
        chosen = costs.merge(of_kv.head(count)[["layer", "kv_head"]])
        fitted = replace(plan, heads=chosen.groupby("layer")["head"].agg(list).to_dict())
        measured = mean_kl(model, fitted, [check_ids])
        if measured <= limit:
            return fitted
        # What is allowed shrinks by the factor that the estimate was off by.
        allowed *= limit / measured
        count = min(count - 1, int(np.searchsorted(spent, allowed, side="right")))
    return plan
