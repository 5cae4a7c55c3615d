"""How far a modified model's predictions are from the unmodified one's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.optimize import optimized
from sinkstudy.attention.plan import Plan
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.variants import AtWork, Variant, at_work, running, unmodified

# Positions are compared this many at a time, so that their log-probabilities stay in the processor's cache.
_POSITIONS = 32


@dataclass(frozen=True)
class Quality:
    """`kl`: mean over positions of KL(unmodified || modified), nats per token. `top1_agreement`: share of positions
    with the same most likely token. `top5_agreement`: mean share of the five most likely tokens that both have.
    `perplexity_ratio`: modified over unmodified, on the same tokens. `perplexity`: of the modified."""

    kl: float
    top1_agreement: float
    top5_agreement: float
    perplexity_ratio: float
    perplexity: float


_KEY = ["model", "set", "n_tokens", "strategy", "policy", "depth"]
_MEASURES = [field.name for field in fields(Quality)]
_GEOMETRIC = ["perplexity_ratio", "perplexity"]


@torch.inference_mode()
def logits_of(model: PreTrainedModel, ids: Tensor, plan: Plan | None = None) -> Tensor:
    """Logits (batch, query, vocabulary) of what the model predicts, under `plan`, after every token of `ids` (batch,
    query)."""
    with optimized(model, plan or Plan()):
        return model(ids, use_cache=False).logits


def compare(reference: Tensor, modified: Tensor, input_ids: Tensor) -> Quality:
    """Compare logits (batch, query, vocabulary) for `input_ids` (batch, query)."""
    batch, queries = input_ids.shape
    kl = first = shared = 0.0
    losses = np.zeros(2)
    for start in range(0, queries, _POSITIONS):
        place = slice(start, start + _POSITIONS)
        both = (reference[:, place], modified[:, place])
        log_p, log_q = (torch.log_softmax(logits, -1, dtype=torch.float64) for logits in both)
        kl += (log_p.exp() * (log_p - log_q)).sum().item()
        top_p, top_q = (logits.topk(min(5, logits.shape[-1]), -1).indices for logits in both)
        first += (top_p[..., 0] == top_q[..., 0]).sum().item()
        shared += (top_p[..., :, None] == top_q[..., None, :]).any(-1).double().mean(-1).sum().item()
        target = input_ids[:, start + 1 : start + 1 + _POSITIONS, None]  # the last position has none to predict
        losses -= [log[:, : target.shape[1]].gather(-1, target).sum().item() for log in (log_p, log_q)]
    unmodified, changed = losses / max(1, batch * (queries - 1))
    with np.errstate(over="ignore"):  # A broken model's loss may be beyond what a float holds.
        ratio, perplexity = np.exp([changed - unmodified, changed]).tolist()
    positions = batch * queries
    return Quality(kl / positions, first / positions, shared / positions, ratio, perplexity)


def quality_table(
    model: PreTrainedModel,
    name: str,
    texts: Sequence[tuple[str, Tensor]],
    variants: Sequence[Variant],
    lengths: list[int],
) -> pd.DataFrame:
    """Quality of the unmodified model (strategy `sdpa`, or `eager` without SDPA) and of every variant that replaces
    heads, per set of texts and length.

    `texts`: set and token ids (1, query). Per length of `lengths`, the texts of at least that many tokens are cut to
    it. Variants that do the same on a text are run once; where none replaces a head, a set's first text is enough to
    see how the unmodified model does. Columns: model, set, n_tokens, strategy, policy, depth, texts, heads_replaced
    (mean over texts), and the fields of Quality, means over positions, geometric for perplexities.
    """
    rows, baseline = [], unmodified(model)
    for n in lengths:
        seen = set()
        for set_name, ids in ((s, ids[:, :n]) for s, ids in texts if ids.shape[1] >= n):
            working = at_work(model, variants, ids)
            if working or set_name not in seen:
                here = {"model": name, "set": set_name, "n_tokens": n}
                for one, quality in _measured(model, baseline, working, ids):
                    rows += [here | cells | vars(quality) for cells in one.cells()]
            seen.add(set_name)
    table = pd.DataFrame(rows, columns=[*_KEY, "heads_replaced", *_MEASURES])
    table[_GEOMETRIC] = np.log(table[_GEOMETRIC].astype(float))
    alike = table.groupby(_KEY, sort=False)
    pooled = alike.mean().assign(texts=alike.size())
    pooled[_GEOMETRIC] = np.exp(pooled[_GEOMETRIC])
    return pooled.reset_index()[[*_KEY, "texts", "heads_replaced", *_MEASURES]]


@torch.inference_mode()
def _measured(
    model: PreTrainedModel, baseline: AtWork, working: Sequence[AtWork], ids: Tensor
) -> Iterator[tuple[AtWork, Quality]]:
    """What was run on one text, and how it did: the unmodified model first."""
    with running(model, baseline.variant):
        reference = logits_of(model, ids)
    yield baseline, compare(reference, reference, ids)
    for one in working:
        with running(model, one.variant):
            logits = logits_of(model, ids)
        if one.leaves_out_work(ids.shape[1]) and torch.equal(logits, reference):
            raise StudyError(
                f"quality: {one.variant.strategy} with policy {one.variant.policy} replaces heads on {ids.shape[1]} "
                "tokens and changes no logit, so the plan cannot have run."
            )
        yield one, compare(reference, logits, ids)
