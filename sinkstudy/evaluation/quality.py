"""How far a modified model's predictions are from the unmodified one's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.evaluation.variants import SDPA, Variant, running


@dataclass(frozen=True)
class Quality:
    """`kl`: mean over positions of KL(unmodified || modified), nats per token. `top1_agreement`: share of positions
    with the same most likely token. `top5_agreement`: mean share of the five most likely tokens that both have.
    `perplexity_ratio`: modified over unmodified, on the same tokens."""

    kl: float
    top1_agreement: float
    top5_agreement: float
    perplexity_ratio: float


def compare(reference: Tensor, modified: Tensor, input_ids: Tensor) -> Quality:
    """Compare logits (batch, query, vocabulary) for `input_ids` (batch, query)."""
    log_p, log_q = (torch.log_softmax(logits.double(), -1) for logits in (reference, modified))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    first = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean()
    top_p, top_q = (log.topk(min(5, log.shape[-1]), -1).indices for log in (log_p, log_q))
    shared = (top_p[..., :, None] == top_q[..., None, :]).any(-1).double().mean()
    target = input_ids[:, 1:, None]
    losses = [-log[:, :-1].gather(-1, target).mean() for log in (log_p, log_q)]
    return Quality(kl.item(), first.item(), shared.item(), (losses[1] - losses[0]).exp().item())


def quality_table(
    model: PreTrainedModel,
    name: str,
    texts: Sequence[tuple[str, Tensor]],
    variants: Sequence[Variant],
    lengths: list[int],
) -> pd.DataFrame:
    """Quality of every variant but the baselines, per set of texts and length.

    `texts`: set and token ids (1, query). Per length of `lengths`, the texts of at least that many tokens are cut to
    it; rows with an empty `n_tokens` take every text whole. Columns: model, set, n_tokens, texts, strategy, policy,
    depth, heads_replaced (mean over texts), and the fields of Quality, means over positions.
    """
    texts = [(s, ids) for s, ids in texts if ids.shape[1] > 1]  # one token predicts nothing that could be checked
    pieces = [(s, math.nan, ids) for s, ids in texts]
    pieces += [(s, n, ids[:, :n]) for n in lengths for s, ids in texts if ids.shape[1] >= n]
    with running(model, SDPA), torch.inference_mode():
        references = [model(ids, use_cache=False).logits for _, _, ids in pieces]
    rows = []
    for variant in variants:
        with running(model, variant) as run, torch.inference_mode():
            for (set_name, n, ids), reference in zip(pieces, references, strict=True):
                quality = compare(reference, model(ids, use_cache=False).logits, ids)
                layers = range(model.config.get_text_config().num_hidden_layers)
                rows.append(
                    {
                        "model": name,
                        "set": set_name,
                        "n_tokens": n,
                        "strategy": variant.strategy,
                        "policy": variant.policy,
                        "depth": variant.depth,
                        "heads_replaced": sum(len(run.replaced(layer)) for layer in layers),
                        **vars(quality),
                        "positions": ids.shape[1],
                    }
                )
    return _pooled(pd.DataFrame(rows, columns=[*_KEY, "heads_replaced", *_MEASURES, "positions"]))


_KEY = ["model", "set", "n_tokens", "strategy", "policy", "depth"]
_MEASURES = [field.name for field in fields(Quality)]


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per set, length and variant: means over positions, of the logarithm for perplexity."""
    rows["perplexity_ratio"] = np.log(rows["perplexity_ratio"])
    pooled = []
    for key, part in rows.groupby(_KEY, sort=False, dropna=False):
        means = {m: np.average(part[m], weights=part["positions"]) for m in _MEASURES}
        means["perplexity_ratio"] = math.exp(means["perplexity_ratio"])
        counts = {"texts": len(part), "heads_replaced": part["heads_replaced"].mean()}
        pooled.append(dict(zip(_KEY, key, strict=True)) | counts | means)
    return pd.DataFrame(pooled, columns=[*_KEY, "texts", "heads_replaced", *_MEASURES])
