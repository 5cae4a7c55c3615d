"""How far a modified model's predictions are from the unmodified one's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sinkstudy.errors import StudyError
from sinkstudy.evaluation.variants import EAGER, SDPA, AtWork, Variant, at_work, running, runs_on_sdpa

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

    @classmethod
    def of_unmodified(cls, perplexity: float) -> "Quality":
        """Of the unmodified model, which is compared with itself."""
        return cls(0.0, 1.0, 1.0, 1.0, perplexity)


@torch.inference_mode()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits (batch, query, vocabulary) of what the model predicts after every token of `ids` (batch, query)."""
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
    positions, predicted = batch * queries, max(1, batch * (queries - 1))
    unmodified, changed = losses / predicted
    return Quality(
        kl=kl / positions,
        top1_agreement=first / positions,
        top5_agreement=shared / positions,
        perplexity_ratio=_exp(changed - unmodified),
        perplexity=_exp(changed),
    )


def perplexity(logits: Tensor, input_ids: Tensor) -> float:
    """exp of the mean negative log-probability, per token, of what follows in `input_ids` (batch, query)."""
    predicted, targets = logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()
    pieces = zip(predicted.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
    losses = [functional.cross_entropy(some.double(), target, reduction="sum").item() for some, target in pieces]
    return _exp(sum(losses) / max(1, len(targets)))


def _exp(loss: float) -> float:
    """Infinity where a broken model's loss is beyond what a float holds."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


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
    see how the unmodified model does. Columns: model, set, n_tokens, texts, strategy, policy,
    depth, heads_replaced (mean over texts), and the fields of Quality, means over positions.
    """
    rows = []
    for n in lengths:
        seen = set()
        for set_name, ids in ((s, ids[:, :n]) for s, ids in texts if ids.shape[1] >= n):
            working = at_work(model, variants, ids)
            for cells, quality in _measured(model, working, ids) if working or set_name not in seen else ():
                rows.append({"model": name, "set": set_name, "n_tokens": n, **cells, **vars(quality), "positions": n})
            seen.add(set_name)
    return _pooled(pd.DataFrame(rows, columns=[*_KEY, "heads_replaced", *_MEASURES, "positions"]))


@torch.inference_mode()
def _measured(model: PreTrainedModel, working: Sequence[AtWork], ids: Tensor) -> Iterator[tuple[dict, Quality]]:
    """What was run on one text, and how it did: the unmodified model first."""
    baseline = SDPA if runs_on_sdpa(model) else EAGER
    with running(model, baseline):
        reference = logits_of(model, ids)
    cells = {"strategy": baseline.strategy, "policy": baseline.policy, "depth": baseline.depth, "heads_replaced": 0}
    yield cells, Quality.of_unmodified(perplexity(reference, ids))
    for one in working:
        with running(model, one.variant):
            logits = logits_of(model, ids)
        quality = compare(reference, logits, ids)
        if one.leaves_out_work(ids.shape[1]) and torch.equal(logits, reference):
            raise StudyError(
                f"quality: {one.variant.strategy} with policy {one.variant.policy} replaces heads on {ids.shape[1]} "
                "tokens and changes no logit, so the plan cannot have run."
            )
        replaced = sum(map(len, one.heads.values()))
        for policy in one.policies:
            cells = {"strategy": one.variant.strategy, "policy": policy, "depth": one.variant.depth}
            yield cells | {"heads_replaced": replaced}, quality


_KEY = ["model", "set", "n_tokens", "strategy", "policy", "depth"]
_MEASURES = [field.name for field in fields(Quality)]
_GEOMETRIC = ["perplexity_ratio", "perplexity"]


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per set, length and variant: means over positions, of the logarithm for perplexities."""
    rows[_GEOMETRIC] = np.log(rows[_GEOMETRIC].astype(float))
    pooled = []
    for key, part in rows.groupby(_KEY, sort=False, dropna=False):
        means = {m: np.average(part[m], weights=part["positions"]) for m in _MEASURES}
        means |= {m: _exp(means[m]) for m in _GEOMETRIC}
        counts = {"texts": len(part), "heads_replaced": part["heads_replaced"].mean()}
        pooled.append(dict(zip(_KEY, key, strict=True)) | counts | means)
    return pd.DataFrame(pooled, columns=[*_KEY, "texts", "heads_replaced", *_MEASURES])
