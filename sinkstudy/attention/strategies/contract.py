"""What a strategy is given, and what it must say about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sinkstudy.attention.heads import HeadToKV
from sinkstudy.attention.recent import RecentTokens


class ReplacedHeads(NamedTuple):
    """Replaced heads of one layer in one forward pass, where the model has computed everything but attention.

    `query` (batch, head, query, width). `key`, `value` (batch, kv_head, key, width): KV heads, tokens of the cache
    included, from token `start` on. `to_kv`: which of those KV heads the replaced heads read. `mask` (batch, 1, query,
    key) bool, or None for plain causal attention. `rest_weight` (batch or 1, head) float32, from the plan, or None.
    `memory`: what the strategy keeps from a prompt's prefill through its decoding, batch first. `cached`: the tokens
    that `key` and `value` come from, where only these heads read them, of which the strategy may forget some.
    `sink_tokens`, `window`: the plan's. `first_layer_pattern()`: the first layer's attention of the same head indices
    for the same queries, (batch, head, query, key).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    to_kv: HeadToKV
    mask: Tensor | None
    scale: float
    sink_tokens: int
    window: int
    rest_weight: Tensor | None
    memory: dict[str, Tensor]
    first_layer_pattern: Callable[[], Tensor]
    cached: RecentTokens | None = None
    start: int = 0

    def first_token(self) -> Tensor:
        """Position of each sequence's first token, (batch,) int64: not 0 with left padding."""
        if self.mask is None:
            return torch.zeros(self.query.shape[0], dtype=torch.long, device=self.query.device)
        return self.real_keys().int().argmax(-1)

    def real_keys(self) -> Tensor:
        """(batch, key) bool: keys that some query may see, so that are no padding."""
        if self.mask is None:
            return self.value.new_ones(self.value.shape[0], self.value.shape[2], dtype=torch.bool)
        return self.mask[:, 0].any(-2).expand(self.value.shape[0], -1)


class HiddenStates(NamedTuple):
    """The tokens of one layer in one forward pass, before any projection of its replaced heads.

    `hidden` (batch, query, hidden): what the layer's projections read. `real` (batch, query) bool, or None where no
    token is padding. `state`: what this strategy keeps of earlier tokens, batch first, kept with the KV cache; empty at
    a sequence's start. `to_kv`: which KV heads the replaced heads read, counted among those that any of them reads.
    `value_of(hidden)`: values of these, (batch, query, kv_head, width). `output_of(outputs)`: what the replaced heads'
    outputs (batch, query, head, width) add to the layer's output, (batch, query, hidden). `shared_output_of(outputs)`:
    the same where heads that read one KV head have the same output, given per KV head.
    """

    hidden: Tensor
    real: Tensor | None
    state: dict[str, Tensor]
    to_kv: HeadToKV
    rest_weight: Tensor | None
    value_of: Callable[[Tensor], Tensor]
    output_of: Callable[[Tensor], Tensor]
    shared_output_of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Strategy:
    """What a replaced head computes instead of attention.

    `from_heads`: outputs (batch, head, query, width), or something that broadcasts to it. `from_hidden`: what the
    replaced heads add to the layer's output, (batch, query or 1, hidden), without their queries and keys; None where
    those, or the first layer's pattern, are needed. `every_value`: whether `from_hidden` reads the value of every
    token, and has an output for each. `needs_rest_weight`: whether it reads the plan's. `needs_first_layer`: whether
    heads of the first layer must be left as they are. `forgets_tokens`: whether `from_heads` shortens what is
    `cached`. `work(n, width, sink_tokens, window)`: multiply-adds of attention that a replaced head still does in a
    prefill of n tokens. `reads` (same arguments but width): share of a KV head's keys and values it reads per decoded
    token from a cache that holds all.
    """

    from_heads: Callable[[ReplacedHeads], Tensor]
    work: Callable[[int, int, int, int], float]
    reads: Callable[[int, int, int], float]
    from_hidden: Callable[[HiddenStates], Tensor] | None = None
    every_value: bool = False
    needs_rest_weight: bool = False
    needs_first_layer: bool = False
    forgets_tokens: bool = False
