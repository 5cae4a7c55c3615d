"""Which heads of a layer are replaced, and how fused attention runs over the others without repeating KV heads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward, use_gqa_in_sdpa

Index = slice | Tensor

_SMALL = 1 << 12  # scores of a head
_FEW = 1 << 16  # numbers in the keys of all heads


def is_small(query: Tensor, key: Tensor) -> bool:
    """Whether a call is so small that its operations count, and not its arithmetic."""
    return query.shape[2] * key.shape[2] <= _SMALL


def are_few(key: Tensor) -> bool:
    """Whether keys are so few that reading all of them takes no longer than choosing some."""
    return key.numel() <= _FEW


class KvReads(NamedTuple):
    """Which of the KV heads at hand some query heads read. `kv_head`: index of the one that each reads; `kv_read`: of
    those that are read at all; `kv_place`: which of these each reads; `per_kv`: how many query heads, neighbours, read
    each of them, or None where that differs."""

    kv_head: Index
    kv_read: Index
    kv_place: Index
    per_kv: int | None

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, kv_heads: tuple[int, ...], device: torch.device) -> "KvReads":
        """`kv_heads`: the one that each query head reads, ascending."""
        counts = Counter(kv_heads)
        read, even = tuple(counts), set(counts.values())
        place = tuple(read.index(kv) for kv in kv_heads)
        indices = (as_index(places, device) for places in (kv_heads, read, place))
        return cls(*indices, per_kv=even.pop() if len(even) == 1 else None)

    @classmethod
    @lru_cache(maxsize=1024)
    def evenly(cls, heads: int, kv_heads: int, device: torch.device) -> "KvReads":
        """As where no head is replaced: equally many neighbours read each KV head."""
        return cls.of(tuple(h * kv_heads // heads for h in range(heads)), device)


@dataclass(frozen=True)
class Group:
    """Query heads and the KV heads they share evenly: one fused call. Stands in for the model's attention module in
    Transformers' SDPA function, which reads these attributes of it."""

    queries: Index
    kv: Index
    num_key_value_groups: int
    is_causal: bool = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """(batch, query, head, width) of this group's heads."""
        states = take(query, self.queries), take(key, self.kv), take(value, self.kv)
        grouped = self.num_key_value_groups > 1
        if grouped and not use_gqa_in_sdpa(mask, *states[1:]):
            return sdpa_attention_forward(self, *states, mask, scaling=scale)[0]
        # What the function above does in this case, without its handling of others, and without copying the output.
        causal = mask is None and query.shape[2] > 1
        attended = scaled_dot_product_attention(
            *states, attn_mask=mask, scale=scale, is_causal=causal, enable_gqa=grouped
        )
        return attended.transpose(1, 2)


@dataclass(frozen=True)
class Layout:
    """The heads of one layer. `heads` query heads share `kv_heads` KV heads evenly, neighbours together."""

    heads: int
    kv_heads: int
    replaced: tuple[int, ...]
    device: torch.device

    @property
    def per_kv(self) -> int:
        return self.heads // self.kv_heads

    @cached_property
    def kept(self) -> list[int]:
        """Kept query heads, those of KV heads with equally many kept ones together."""
        gone = set(self.replaced)
        left = {kv: [h for h in self._of(kv) if h not in gone] for kv in range(self.kv_heads)}
        return [h for kv in sorted(left, key=lambda kv: (len(left[kv]), kv)) for h in left[kv]]

    @cached_property
    def kept_kv(self) -> list[int]:
        """KV heads that some kept head reads, in the order of `kept`."""
        return list(dict.fromkeys(h // self.per_kv for h in self.kept))

    @cached_property
    def replaced_kv(self) -> list[int]:
        """KV heads that some replaced head reads."""
        return sorted({h // self.per_kv for h in self.replaced})

    @cached_property
    def reads(self) -> KvReads:
        """Which of all KV heads the replaced heads read."""
        return KvReads.of(tuple(h // self.per_kv for h in self.replaced), self.device)

    @cached_property
    def own_kv(self) -> list[int]:
        """KV heads that only replaced heads read."""
        return [kv for kv in self.replaced_kv if kv not in self.kept_kv]

    @cached_property
    def replaced_index(self) -> Index:
        return self._index(self.replaced)

    @cached_property
    def is_replaced(self) -> Tensor:
        """(head, 1, 1) bool."""
        with torch.inference_mode(False):  # what is kept may be needed for a gradient later
            places = torch.tensor([h in self.replaced for h in range(self.heads)], device=self.device)
        return places[:, None, None]

    @cached_property
    def cut_groups(self) -> list[Group]:
        """Fused calls over the kept heads where nothing else was projected, in the order of `kept`: all are slices."""
        groups, query, kv = [], 0, 0
        for count, members in groupby(self.kept_kv, lambda kv: len(self._kept_of(kv))):
            size = len(list(members))
            groups.append(Group(slice(query, query + size * count), slice(kv, kv + size), count))
            query, kv = query + size * count, kv + size
        return groups

    def groups(self, query: Tensor, key: Tensor) -> list[Group]:
        """Fused calls over the kept heads among all."""
        return self.short_groups if query.shape[2] == 1 or is_small(query, key) else self.long_groups

    @cached_property
    def long_groups(self) -> list[Group]:
        """Fused calls over the kept heads among all: neighbouring KV heads that keep all their query heads, then the
        rest by how many they keep."""
        if all(len(self._kept_of(kv)) == self.per_kv for kv in self.kept_kv):
            return self.short_groups
        return [
            Group(self._index(self.kept[cut.queries]), self._index(self.kept_kv[cut.kv]), cut.num_key_value_groups)
            for cut in self.cut_groups
        ]

    @cached_property
    def short_groups(self) -> list[Group]:
        """Fused calls without copying a key or value: runs of neighbouring KV heads with all their query heads,
        replaced ones among them included. Reading keys and values is what decoding waits for, and fewer calls are what
        a short prompt gains from."""
        runs: list[list[int]] = []
        for kv in sorted(self.kept_kv):
            if runs and runs[-1][-1] == kv - 1:
                runs[-1].append(kv)
            else:
                runs.append([kv])
        n = self.per_kv
        return [Group(slice(run[0] * n, (run[-1] + 1) * n), slice(run[0], run[-1] + 1), n) for run in runs]

    def _of(self, kv: int) -> range:
        return range(kv * self.per_kv, (kv + 1) * self.per_kv)

    def _kept_of(self, kv: int) -> list[int]:
        return [h for h in self._of(kv) if h not in self.replaced]

    def _index(self, heads: Sequence[int]) -> Index:
        return as_index(tuple(heads), self.device)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # what is kept may be needed for a gradient later
def as_index(places: tuple[int, ...], device: torch.device) -> Index:
    """A slice, which copies nothing, where the places are neighbours."""
    start = places[0] if places else 0
    if places == tuple(range(start, start + len(places))):
        return slice(start, start + len(places))
    return torch.tensor(places, dtype=torch.long, device=device)


def take(states: Tensor, heads: Index) -> Tensor:
    """`states[:, heads]`; indexing by a tensor takes three times as long."""
    if not isinstance(heads, slice):
        return states.index_select(1, heads)
    return states if heads == slice(0, states.shape[1]) else states[:, heads]


def put(output: Tensor, heads: Index, part: Tensor) -> None:
    """`output[:, :, heads] = part`, likewise, where `part` may broadcast along the queries."""
    if isinstance(heads, slice):
        output[:, :, heads] = part
    else:
        output.index_copy_(2, heads, part.expand(-1, output.shape[1], -1, -1))
