"""Choosing the heads a plan replaces: from score tables of calibration prompts, and from what replacing them costs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.optimize import optimized
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.quality import compare
from sinkstudy.attention.variants import runs_on_sdpa


def first_layer(threshold: float, max_tokens: int | None) -> Plan:
    """The original study's policy: decided at inference from the first layer's attention to this very input."""
    return Plan(first_layer_threshold=threshold, max_tokens=max_tokens, policy="first_layer")


def consistent(scores: pd.DataFrame, share: float, min_tokens: int, max_tokens: int | None) -> Plan:
    """Heads that are sinks in at least `share` of the prompts of `min_tokens` to `max_tokens` tokens.

    Shorter prompts are left out because the raw score of any head is high there. `scores` has the columns prompt,
    n_tokens, layer, head, sink_score, is_sink. With no such prompt the plan is empty. The plan's own `max_tokens` is
    the given one, or else the longest of these prompts in which at least `share` of the chosen heads are sinks: sinks
    may fade with length, and beyond that nobody has looked. Its `rest_weight` of a head is the median over the prompts.
    """
    limit = np.inf if max_tokens is None else max_tokens
    used = scores[scores["n_tokens"].between(min_tokens, limit)]
    shares = used.groupby(["layer", "head"])["is_sink"].mean()
    chosen = shares[shares >= share].index
    if chosen.empty:
        return Plan(max_tokens=max_tokens, policy="consistent")
    used = used.set_index(["layer", "head"]).loc[chosen]
    if max_tokens is None:
        held = used.groupby(["prompt", "n_tokens"])["is_sink"].mean().reset_index("n_tokens")
        max_tokens = int(held.loc[held["is_sink"] >= share, "n_tokens"].max())
    used = used.assign(weight=rest_weight(used["sink_score"].to_numpy(), used["n_tokens"].to_numpy()))
    heads: dict[int, list[int]] = {}
    weights: dict[int, dict[int, float]] = {}
    for (layer, head), weight in used.groupby(["layer", "head"])["weight"].median().items():
        heads.setdefault(int(layer), []).append(int(head))
        weights.setdefault(int(layer), {})[int(head)] = float(f"{weight:.6g}")
    return Plan(heads=heads, max_tokens=max_tokens, rest_weight=weights, policy="consistent")


def layerwise(model: PreTrainedModel, plan: Plan, prompts: Sequence[Tensor], budget: float) -> Plan:
    """The layers of `plan` that can be replaced at a KL divergence of at most `budget` nats per token in all.

    Each layer's cost is measured by replacing its heads alone; layers join in order of cost per head as long as the
    divergence of all of them together stays within the budget. `prompts`: calibration prompts, (1, query) each; those
    longer than the plan's `max_tokens` are left out. The plan of a model that cannot run on SDPA is empty.
    """
    if not runs_on_sdpa(model):
        return replace(_only(plan, []), policy="layerwise")
    used = [ids for ids in prompts if plan.max_tokens is None or ids.shape[1] <= plan.max_tokens]
    cost = {layer: _cost(model, _only(plan, [layer]), used) / len(heads) for layer, heads in plan.heads.items()}
    chosen: list[int] = []
    for layer in sorted(cost, key=lambda layer: (cost[layer], layer)):
        if _cost(model, _only(plan, [*chosen, layer]), used) <= budget:
            chosen.append(layer)
    return replace(_only(plan, chosen), policy="layerwise")


def rest_weight(score: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """The r at which a head with mass 1 / (1 + r i) on the first token, i places after it, has this sink score over
    `n_tokens` tokens. Between 0 and 1: a score below that of uniform attention counts as uniform."""
    low, high = np.zeros(len(score)), np.ones(len(score))
    places = [np.arange(n) for n in n_tokens]
    for _ in range(40):
        middle = (low + high) / 2
        reached = np.array([np.mean(1 / (1 + r * i)) for r, i in zip(middle, places, strict=True)])
        low, high = np.where(reached > score, middle, low), np.where(reached > score, high, middle)
    return high


def _only(plan: Plan, layers: Sequence[int]) -> Plan:
    return replace(plan, heads={layer: plan.heads[layer] for layer in sorted(layers)})


@torch.inference_mode()
def _cost(model: PreTrainedModel, plan: Plan, prompts: Sequence[Tensor]) -> float:
    """Mean KL divergence over all positions of the prompts."""
    total, tokens = 0.0, 0
    for ids in prompts:
        before = model(ids, use_cache=False).logits
        with optimized(model, plan):
            after = model(ids, use_cache=False).logits
        total += compare(before, after, ids).kl * ids.shape[1]
        tokens += ids.shape[1]
    return total / max(1, tokens)
