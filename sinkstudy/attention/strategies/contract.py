"""What a strategy is given, and what it must say about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from sinkstudy.attention.layout import KvReads


class ReplacedHeads(NamedTuple):
    """The replaced heads of one layer in one forward pass, where the model has computed everything but attention.

    `query` (batch, head, query, width): the replaced heads', none where the strategy projects none. `key`, `value`
    (batch, kv_head, key, width): KV heads, tokens of the cache included, from token `start` on; no keys where the
    strategy projects none. `reads`: which of those KV heads the replaced heads read. `mask` (batch, 1, query, key)
    bool, or None for plain causal attention. `first()`, (batch,) int64: position of each sequence's first token (not 0
    with left padding). `rest_weight` (batch or 1, head) float32, from the plan, or None. `memory`: what the strategy
    keeps from a prompt's prefill through its decoding, batch first; where it holds "key" and "value", these are the
    cache that `key` and `value` come from, which the strategy may replace by less. `sink_tokens`, `window`: the
    plan's. `first_layer_map()`: the first layer's attention of the same head indices for the same queries, (batch,
    head, query, key).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    reads: KvReads
    mask: Tensor | None
    first: Callable[[], Tensor]
    scale: float
    sink_tokens: int
    window: int
    rest_weight: Tensor | None
    memory: dict[str, Tensor]
    first_layer_map: Callable[[], Tensor]
    start: int = 0


class HiddenStates(NamedTuple):
    """The tokens of one layer in one forward pass, before any projection of its replaced heads.

    `hidden` (batch, query, hidden): what the layer's projections read. `real` (batch, query) bool, or None where no
    token is padding. `state`: what this strategy keeps of earlier tokens, batch first, kept with the KV cache; empty at
    a sequence's start. `reads`: which of all KV heads the replaced heads read. `value_of(hidden)`: values of those that
    are read, (batch, query, kv_head, width). `output_of(outputs)`: what the replaced heads' outputs (batch, query,
    head, width) add to the layer's output, (batch, query, hidden). `shared_output_of(outputs)`: the same where heads
    that read one KV head have the same output, given per KV head.
    """

    hidden: Tensor
    real: Tensor | None
    state: dict[str, Tensor]
    reads: KvReads
    rest_weight: Tensor | None
    value_of: Callable[[Tensor], Tensor]
    output_of: Callable[[Tensor], Tensor]
    shared_output_of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Strategy:
    """What a replaced head computes instead of attention.

    `from_heads`: outputs (batch, head, query, width), or something that broadcasts to it. `from_hidden`: what the
    replaced heads add to the layer's output, (batch, query or 1, hidden), without their queries and keys; None where
    those, or the first layer's pattern, are needed. `projects`: which of a replaced head's "query", "key" and "value"
    are read of every token. `needs_rest_weight`: whether `from_hidden` reads the plan's. `needs_first_layer`: whether
    heads of the first layer must be left as they are. `work(n, width, sink_tokens, window)`: multiply-adds of attention
    that a replaced head still does in a prefill of n tokens. `reads` (same arguments but width): share of a KV head's
    keys and values it reads per decoded token from a cache that holds all.
    """

    from_heads: Callable[[ReplacedHeads], Tensor]
    work: Callable[[int, int, int, int], float]
    reads: Callable[[int, int, int], float]
    projects: tuple[str, ...]
    from_hidden: Callable[[HiddenStates], Tensor] | None = None
    needs_rest_weight: bool = False
    needs_first_layer: bool = False
