"""Choosing the heads a plan replaces: from score tables of calibration prompts, and from what replacing them costs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.quality import compare, logits_of
from sinkstudy.evaluation.variants import takes_plans

# Layer costs are measured on so many prompts, spread over their lengths, and on at most so many tokens of each.
CALIBRATION_PROMPTS, CALIBRATION_TOKENS = 8, 256
_PLACES_AT_ONCE = 1 << 18


def consistent(scores: Iterable[pd.DataFrame], share: float, min_tokens: int, max_tokens: int | None) -> Plan:
    """Heads that are sinks in at least `share` of the prompts of `min_tokens` to `max_tokens` tokens.

    Shorter prompts are left out because the raw score of any head is high there. `scores`: tables with the columns
    prompt, n_tokens, layer, head, sink_score, is_sink and all rows of a prompt in one of them, gone through twice. With
    no such prompt the plan is empty. The plan's own `max_tokens` is the given one, or else the longest of these prompts
    in which at least `share` of the chosen heads are sinks: sinks may fade with length, and beyond that nobody has
    looked. Its `rest_weight` of a head is the median over the prompts; only chosen heads are held per prompt.
    """
    limit, by_head = np.inf if max_tokens is None else max_tokens, ["layer", "head"]
    counts = (
        part[part["n_tokens"].between(min_tokens, limit)].groupby(by_head)["is_sink"].agg(["sum", "count"])
        for part in scores
    )
    sinks = reduce(lambda so_far, added: so_far.add(added, fill_value=0), counts)
    chosen = sinks.index[sinks["sum"] / sinks["count"] >= share]
    if chosen.empty:
        return Plan(max_tokens=max_tokens, policy="consistent")
    held, found = [], []
    for part in scores:
        used = part[part["n_tokens"].between(min_tokens, limit)].set_index(by_head)
        used = used[used.index.isin(chosen)]
        held.append(used.groupby("prompt").agg({"n_tokens": "first", "is_sink": "mean"}))
        found.append(pd.Series(rest_weight(used["sink_score"].to_numpy(), used["n_tokens"].to_numpy()), used.index))
    if max_tokens is None:
        shares = pd.concat(held)
        max_tokens = int(shares.loc[shares["is_sink"] >= share, "n_tokens"].max())
    weights: dict[int, dict[int, float]] = {}
    for (layer, head), weight in pd.concat(found).groupby(by_head).median().items():
        weights.setdefault(int(layer), {})[int(head)] = float(f"{weight:.6g}")
    heads = {layer: list(of) for layer, of in weights.items()}
    return Plan(heads=heads, max_tokens=max_tokens, rest_weight=weights, policy="consistent")


def layerwise(model: PreTrainedModel, plan: Plan, prompts: Sequence[Tensor], budget: float) -> Plan:
    """The layers of `plan` that can be replaced at a KL divergence of at most `budget` nats per token in all.

    Each layer's cost is measured by replacing its heads alone; layers join in order of cost per head as long as the
    divergence of all of them together stays within the budget. `prompts`: calibration prompts, (1, query) each; those
    of a length that the plan does not cover are left out. The plan of a model that cannot run on SDPA is empty.
    """
    if not takes_plans(model):
        return replace(_only(plan, []), policy="layerwise")
    used = [ids for ids in prompts if plan.covers(ids.shape[1])]
    cost = {layer: mean_kl(model, _only(plan, [layer]), used) / len(heads) for layer, heads in plan.heads.items()}
    chosen: list[int] = []
    for layer in sorted(cost, key=lambda layer: (cost[layer], layer)):
        if mean_kl(model, _only(plan, [*chosen, layer]), used) <= budget:
            chosen.append(layer)
    return replace(_only(plan, chosen), policy="layerwise")


def rest_weight(score: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """The r at which a head with mass 1 / (1 + r i) on the first token, i places after it, has this sink score over
    `n_tokens` tokens. Between 0 and 1: a score below that of uniform attention counts as uniform."""
    low, high = np.zeros(len(score)), np.ones(len(score))
    for n in np.unique(n_tokens):
        alike = np.flatnonzero(n_tokens == n)
        for rows in np.array_split(alike, -(-len(alike) * n // _PLACES_AT_ONCE)):
            for _ in range(40):
                middle = (low[rows] + high[rows]) / 2
                above = (1 / (1 + middle[:, None] * np.arange(n))).mean(1) > score[rows]
                low[rows], high[rows] = np.where(above, middle, low[rows]), np.where(above, high[rows], middle)
    return high


def _only(plan: Plan, layers: Sequence[int]) -> Plan:
    return replace(plan, heads={layer: plan.heads[layer] for layer in sorted(layers)})


def mean_kl(model: PreTrainedModel, plan: Plan, prompts: Sequence[Tensor]) -> float:
    """Mean KL divergence over all positions of the prompts."""
    total, tokens = 0.0, 0
    for ids in prompts:
        total += compare(logits_of(model, ids), logits_of(model, ids, plan), ids).kl * ids.shape[1]
        tokens += ids.shape[1]
    return total / max(1, tokens)
