"""How far a modified model's predictions are from the unmodified one's."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quality:
    """`kl`: mean over positions of KL(unmodified || modified), nats per token. `top1_agreement`: share of positions
    with the same most likely token. `perplexity_ratio`: modified over unmodified, on the same tokens."""

    kl: float
    top1_agreement: float
    perplexity_ratio: float


def compare(reference: Tensor, modified: Tensor, input_ids: Tensor) -> Quality:
    """Compare logits (batch, query, vocabulary) for `input_ids` (batch, query)."""
    log_p, log_q = (torch.log_softmax(logits.double(), -1) for logits in (reference, modified))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean()
    target = input_ids[:, 1:, None]
    losses = [-log[:, :-1].gather(-1, target).mean() for log in (log_p, log_q)]
    return Quality(kl.item(), agreement.item(), (losses[1] - losses[0]).exp().item())
