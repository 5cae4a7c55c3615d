"""What a policy's heads cost to replace, beside as many other heads of the same layers.

That predictions stay when sink heads are replaced says something about sinks only where other heads cost more. The
controls: heads drawn at random, those that are surely no sinks, those that write least (dormant heads, Sandoval-Segura
et al., 2504.03889), and those whose first value is drained most.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.benchmark import windows
from sinkstudy.evaluation.quality import Quality, compare, logits_of
from sinkstudy.evaluation.variants import SDPA, running
from sinkstudy.stats.resampling import Resampling, ratio_intervals

# Each control takes the heads with the least of a column of the table of heads.
CONTROLS = {"no_sinks": "mean_sink_score", "smallest_output": "mean_output_norm", "most_drained": "value_drain"}
# Texts: about so many tokens in all, within these numbers.
_TOKENS, _LEAST_TEXTS, _MOST_TEXTS = 2048, 4, 16
_COUNTS = ["heads_replaced", "shared_heads", "top1_agreement"]
_MEASURES = ("kl", "kl_beyond", "perplexity_ratio", "perplexity_beyond")
_COLUMNS = ["model", "policy", "n_tokens", "strategy", "chosen_by", "texts", *_COUNTS]
_COLUMNS += [f"{measure}{end}" for measure in _MEASURES for end in ("", "_low", "_high")]


def skipping_table(
    model: PreTrainedModel,
    name: str,
    token_ids: list[int],
    plans: Sequence[Plan],
    heads: pd.DataFrame,
    lengths: Sequence[int],
    resampling: Resampling,
) -> pd.DataFrame:
    """One row per plan that names heads, and per control of it, at the longest of `lengths` that the plan covers.

    `token_ids`: held-out text, of which windows are taken. `heads`: a row per head, with layer, head and columns of
    CONTROLS; a control whose column is empty or not there is left out. `shared_heads`: of a control, heads that the
    policy chose as well, mean over texts. `kl`, `perplexity_ratio`: means over texts (geometric for the latter), with
    95% intervals over them; `kl_beyond`: the KL less the policy's on the same texts, `perplexity_beyond` the ratio of
    both perplexities. Random heads are drawn anew for each text, so their intervals hold for any draw.
    """
    distinct: dict[str, list[Plan]] = {}  # policies that chose the same heads are measured once
    for plan in plans:
        distinct.setdefault(repr(replace(plan, policy="")), []).append(plan)
    rows = []
    for plan, *others in distinct.values():
        covered = [n for n in lengths if plan.covers(n) and n <= len(token_ids)]
        if plan.heads and covered:
            n = max(covered)
            count = int(np.clip(_TOKENS // n, _LEAST_TEXTS, _MOST_TEXTS))
            texts = windows(token_ids, n, count).to(model.device).split(1)
            pooled = _pooled(_measured(model, plan, texts, heads, resampling.seed), resampling)
            rows += [[name, one.policy, n, plan.strategy, *row] for one in (plan, *others) for row in pooled]
    return pd.DataFrame(rows, columns=_COLUMNS)


def control_heads(plan: Plan, heads: pd.DataFrame, column: str) -> dict[int, list[int]]:
    """As many heads of each layer as the plan replaces, those with the least of `column`."""
    ranked = heads.sort_values(["layer", column, "head"]).groupby("layer")["head"]
    return {layer: ranked.get_group(layer).head(len(chosen)).tolist() for layer, chosen in plan.heads.items()}


def random_heads(plan: Plan, heads: int, rng: np.random.Generator) -> dict[int, list[int]]:
    """As many heads of each layer as the plan replaces, drawn from all `heads` of it."""
    return {layer: rng.permutation(heads)[: len(chosen)].tolist() for layer, chosen in plan.heads.items()}


def with_heads(plan: Plan, chosen: dict[int, list[int]]) -> Plan:
    """`plan` with other heads, as many in each layer, which take over the windows."""
    windows = plan.windows and {
        layer: {head: plan.window_of(layer, old) for head, old in zip(of, plan.heads[layer], strict=True)}
        for layer, of in chosen.items()
    }
    return replace(plan, heads=chosen, windows=windows, rest_weight=None)


@torch.inference_mode()
def _measured(
    model: PreTrainedModel, plan: Plan, texts: Sequence[Tensor], heads: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """A row per text and choice of heads."""
    rng, count = np.random.default_rng(seed), model.config.get_text_config().num_attention_heads
    known = {name: column for name, column in CONTROLS.items() if column in heads and heads[column].notna().any()}
    controls = {name: with_heads(plan, control_heads(plan, heads, column)) for name, column in known.items()}
    rows = []
    for ids in texts:
        with running(model, SDPA):
            reference = logits_of(model, ids)
        found: dict[str, Quality] = {}  # Two choices may name the same heads, which are measured once.
        drawn = with_heads(plan, random_heads(plan, count, rng))
        for chosen_by, one in {"policy": plan, **controls, "random": drawn}.items():
            if (same := str((one.heads, one.windows))) not in found:
                found[same] = compare(reference, logits_of(model, ids, one), ids)
            shared = sum(len(set(plan.heads[layer]) & set(of)) for layer, of in one.heads.items())
            row = {"chosen_by": chosen_by, "heads_replaced": plan.replaced, "shared_heads": shared}
            rows.append(row | vars(found[same]))
    return pd.DataFrame(rows)


def _pooled(measured: pd.DataFrame, resampling: Resampling) -> list[list[object]]:
    """The cells of _COLUMNS from `chosen_by` on, of every choice of heads, over its texts."""
    measured["loss"], pooled = np.log(measured["perplexity_ratio"]), []
    by_choice = measured.groupby("chosen_by", sort=False)
    own = by_choice.get_group("policy")[["kl", "loss"]].to_numpy()  # (text, measure)
    for chosen_by, part in by_choice:
        here = part[["kl", "loss"]].to_numpy()
        values = np.stack([here, here - own], axis=2).reshape(len(part), -1)  # (text, _MEASURES)
        ends = ratio_intervals(values, np.ones_like(values), resampling)
        # Each of _MEASURES has its value and both ends of its interval, (measure, 3).
        levels = np.stack([values.mean(0), *ends], axis=1)
        levels[2:] = np.exp(levels[2:])
        pooled.append([chosen_by, len(part), *part[_COUNTS].mean(), *levels.ravel()])
    return pooled
