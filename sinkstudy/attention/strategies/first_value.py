"""The head's output is the first token's value: exact for a head whose whole mass is on the first token."""

import torch
from torch import Tensor

from sinkstudy.attention.strategies.contract import HiddenStates, ReplacedHeads, Strategy


def from_heads(heads: ReplacedHeads) -> Tensor:
    rows = torch.arange(heads.value.shape[0], device=heads.value.device)
    first = heads.value[rows, :, heads.first_token()]  # (batch, kv_head, width)
    return first[:, heads.to_kv.index, None]  # (batch, head, 1, width)


def from_hidden(tokens: HiddenStates) -> Tensor:
    """One vector per sequence, found once and kept."""
    if "output" not in tokens.state:
        hidden = tokens.hidden[:, :1]
        if tokens.real is not None:
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            hidden = tokens.hidden[rows, tokens.real.int().argmax(-1)][:, None]
        tokens.state["output"] = tokens.shared_output_of(tokens.value_of(hidden))
    return tokens.state["output"]  # (batch, 1, hidden)


FIRST_VALUE = Strategy(
    from_heads, work=lambda n, width, *_: 0, reads=lambda n, *_: 1 / (2 * n), from_hidden=from_hidden
)
