"""Which heads of a layer are kept and which replaced, and the fused calls that attend the kept ones."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Index = slice | Tensor


class AttentionInputs(NamedTuple):
    """One attention call. `query` (batch, head, query, width), `key` and `value` (batch, kv_head, key, width), `mask`
    (batch, 1, query, key) bool, or None for plain causal attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float

    def until(self, tokens: int) -> "AttentionInputs":
        """Without the places of a static cache that hold no token yet, as a dynamic cache would make the call."""
        if self.key.shape[2] <= tokens:
            return self
        mask = None if self.mask is None else self.mask[..., :tokens]
        return self._replace(key=self.key[:, :, :tokens], value=self.value[:, :, :tokens], mask=mask)


class HeadToKV(NamedTuple):
    """Which KV heads some query heads read. `index`: the KV head of each query head; `unique`: the KV heads that are
    read at all; `inverse`: the place of each query head's in `unique`; `group_size`: how many query heads, neighbours,
    read each of `unique`, or None where that differs."""

    index: Index
    unique: Index
    inverse: Index
    group_size: int | None

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, kv_heads: tuple[int, ...], device: torch.device) -> "HeadToKV":
        """`kv_heads`: the one that each query head reads, ascending."""
        counts = Counter(kv_heads)
        unique, sizes = tuple(counts), set(counts.values())
        places = kv_heads, unique, tuple(unique.index(kv) for kv in kv_heads)
        return cls(*(as_index(some, device) for some in places), sizes.pop() if len(sizes) == 1 else None)


class KeptGroup(NamedTuple):
    """Query heads and the KV heads they share evenly, among those at hand: one fused call. It stands in for the model's
    attention module in Transformers' SDPA function, which reads `num_key_value_groups` of it. `mask` (1, head, 1, key)
    is the group's own, of numbers to add; None: that of the call."""

    queries: Index
    kv: Index
    num_key_value_groups: int
    mask: Tensor | None = None

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """(batch, query, head, width) of this group's heads."""
        states = (
            select_heads(inputs.query, self.queries),
            select_heads(inputs.key, self.kv),
            select_heads(inputs.value, self.kv),
        )
        mask = inputs.mask if self.mask is None else self.mask
        if inputs.query.device.type == "cpu":
            # Under a mask Transformers stacks query heads or copies KV heads; this kernel reads shared ones in place.
            output = scaled_dot_product_attention(
                *states,
                attn_mask=mask,
                is_causal=mask is None and inputs.query.shape[2] > 1,
                scale=inputs.scale,
                enable_gqa=self.num_key_value_groups > 1,
            )
            return output.transpose(1, 2).contiguous()
        return sdpa_attention_forward(self, *states, mask, scaling=inputs.scale)[0]


@dataclass(frozen=True, eq=False)
class HeadPartition:
    """The heads of one layer: `heads` query heads share `kv_heads` KV heads evenly, neighbours together, and `replaced`
    are those that do not attend. `is_split`: whether KV heads that only these read have caches of their own.
    `partition_heads` makes one object for the same heads, which stands for itself."""

    heads: int
    kv_heads: int
    replaced: tuple[int, ...]
    device: torch.device
    is_split: bool = False

    @cached_property
    def kept(self) -> list[int]:
        """Kept query heads, those of KV heads with equally many kept ones together."""
        kept = [h for h in range(self.heads) if h not in self.replaced]
        return [h for part in self.evenly(kept) for h in part]

    @cached_property
    def kept_kv(self) -> list[int]:
        """KV heads that some kept head reads, in the order of `kept`."""
        return list(dict.fromkeys(map(self.kv_of, self.kept)))

    @cached_property
    def kv_at_hand(self) -> tuple[int, ...]:
        """KV heads whose keys and values a layer attends to."""
        return tuple(self.kept_kv if self.is_split else range(self.kv_heads))

    @cached_property
    def prefill_groups(self) -> list[KeptGroup]:
        """Fused calls where all query heads are at hand: nothing is attended that is not kept."""
        return self.groups(range(self.heads), self.kv_at_hand)

    def groups(self, queries: Sequence[int], kv_heads: Sequence[int]) -> list[KeptGroup]:
        """Fused calls of kept heads alone, in the order of `kept`, where these query heads and KV heads are at hand."""
        groups = []
        for part in self.evenly(self.kept):
            to_kv = self.to_kv(part, kv_heads)
            groups.append(KeptGroup(self.index(map(queries.index, part)), to_kv.unique, to_kv.group_size))
        return groups

    @cached_property
    def decode_groups(self) -> list[KeptGroup]:
        """Fused calls for a single query, which takes as long as reading the cache does: neighbouring KV heads of one
        that is not split are read where they lie, and replaced heads that share them attend in vain."""
        if self.is_split:
            return self.prefill_groups
        size, groups = self.heads // self.kv_heads, []
        for _, run in groupby(enumerate(sorted(self.kept_kv)), lambda pair: pair[1] - pair[0]):
            members = [kv for _, kv in run]
            first, end = members[0], members[-1] + 1
            groups.append(KeptGroup(slice(first * size, end * size), slice(first, end), size))
        return groups

    @cached_property
    def readers(self) -> list[int]:
        """The query heads, kept or not, that read the KV heads `kept_kv`, in their order."""
        size = self.heads // self.kv_heads
        return [kv * size + place for kv in self.kept_kv for place in range(size)]

    @cached_property
    def readers_are_all(self) -> bool:
        """Whether `readers` are all heads in their own order."""
        return self.readers == list(range(self.heads))

    @cached_property
    def readers_group(self) -> KeptGroup:
        """One fused call of `readers`, where only the KV heads `kept_kv` are at hand."""
        return KeptGroup(self.index(self.readers), slice(0, len(self.kept_kv)), self.heads // self.kv_heads)

    @cached_property
    def shares_kv(self) -> bool:
        """Whether some KV head is read by kept heads and by replaced ones."""
        return len(self.readers) > len(self.kept)

    def evenly(self, heads: Sequence[int]) -> list[tuple[int, ...]]:
        """These heads, those together of whose KV heads equally many of them read."""
        counts = Counter(map(self.kv_of, heads))
        sizes = sorted(set(counts.values()))
        return [tuple(h for h in heads if counts[self.kv_of(h)] == size) for size in sizes]

    def kv_of(self, head: int) -> int:
        return head // (self.heads // self.kv_heads)

    def to_kv(self, heads: Sequence[int], at_hand: Sequence[int]) -> HeadToKV:
        """Which of the KV heads `at_hand` these query heads read."""
        return HeadToKV.of(tuple(at_hand.index(self.kv_of(h)) for h in heads), self.device)

    def index(self, heads: Iterable[int]) -> Index:
        return as_index(tuple(heads), self.device)


# The same heads get the same object, so that its groups are made once.
partition_heads = lru_cache(maxsize=1024)(HeadPartition)


@lru_cache(maxsize=1024)
# An index that is made in inference mode cannot be used where gradients are recorded.
@torch.inference_mode(False)
def as_index(places: tuple[int, ...], device: torch.device) -> Index:
    """A slice, which copies nothing, where the places are neighbours."""
    start = places[0] if places else 0
    if places == tuple(range(start, start + len(places))):
        return slice(start, start + len(places))
    return torch.tensor(places, dtype=torch.long, device=device)


def select_heads(states: Tensor, heads: Index) -> Tensor:
    """`states[:, heads]`."""
    if isinstance(heads, slice):
        return states if heads == slice(0, states.shape[1]) else states[:, heads]
    return states.index_select(1, heads)


def scatter_heads(output: Tensor, heads: Index, part: Tensor) -> None:
    """`output[:, :, heads] = part`, where `part` (batch, query or 1, head, width) may broadcast along the queries."""
    if isinstance(heads, slice):
        output[:, :, heads] = part
        return
    if part.shape[1] != output.shape[1] or part.dtype != output.dtype:
        # Under autocast the attention has less precision than its query.
        part = part.expand(-1, output.shape[1], -1, -1).to(output.dtype)
    output.index_copy_(2, heads, part)
