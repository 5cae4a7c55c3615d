"""Layers whose replaced heads run inside the module's own forward, on the projections and the KV cache they need.

Strategies that read each token's value, or its query and key as well, need those projected. Here nothing more is, and
KV heads that only replaced heads read have a cache of their own, which the strategy may shorten. Heads change their
order, kept ones first, so that every fused call reads slices; the output projection's columns follow.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sinkstudy.attention.cache import ReducedLayer
from sinkstudy.attention.layout import Index, as_index
from sinkstudy.attention.projections import CutModule, columns_of, rows_of
from sinkstudy.attention.run import Run, first_tokens
from sinkstudy.attention.strategies.contract import ReplacedHeads


@dataclass
class _Part:
    """Replaced heads with one cache: `heads` by index, which of that cache's KV heads each reads, which are read at
    all, and how many heads read each, or None where that differs."""

    heads: tuple[int, ...]
    kv_head: Index
    kv_read: Index
    per_kv: int | None

    @classmethod
    def of(cls, heads: list[int], kv_heads: list[int], per_kv: int, device: torch.device) -> "_Part":
        if not heads:
            return cls((), slice(0), slice(0), None)
        places = tuple(kv_heads.index(h // per_kv) for h in heads)
        read = Counter(places)
        even = set(read.values())
        per_kv = even.pop() if len(even) == 1 else None
        return cls(tuple(heads), as_index(places, device), as_index(tuple(read), device), per_kv)


class NarrowedAttention(CutModule):
    """One attention module with its replaced heads narrowed down to what the strategy reads."""

    def __init__(self, attention: nn.Module, heads: int, run: Run) -> None:
        super().__init__(attention, heads, run)
        layout, needs = self.layout, self.strategy.projects
        shared = [h for h in layout.replaced if h // layout.per_kv not in layout.own_kv]
        own = [h for h in layout.replaced if h // layout.per_kv in layout.own_kv]
        self._shared = _Part.of(shared, layout.kept_kv, layout.per_kv, layout.device)
        self._own = _Part.of(own, layout.own_kv, layout.per_kv, layout.device)
        self._kept: ReducedLayer = ReducedLayer()
        self._projects_keys = "key" in needs
        query, key, value, output = self.linears
        # A module cannot do without any head: where nothing is to be projected, one is, and nothing reads it.
        self.use(
            rows_of(query, layout.kept + (shared + own if "query" in needs else []) or [0], self.width),
            rows_of(key, layout.kept_kv + (layout.own_kv if "key" in needs else []) or [0], self.width),
            rows_of(value, layout.kept_kv + layout.own_kv, self.width),
            columns_of(output, layout.kept + shared + own, self.width),
        )

    def apply(self, inputs: dict, kept: ReducedLayer) -> tuple[Tensor, Tensor | None]:
        self._kept = kept
        cache = _Divided(kept, len(self.layout.kept_kv), self._projects_keys, inputs["past_key_values"] is not None)
        return self.run_on_parts(inputs | {"past_key_values": cache})

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        outputs = self.attend_kept(query, key, value, mask, scale)
        state, done = self._kept.state, len(self.layout.kept)
        caches = (self._shared, key, value, {}), (self._own, state.get("key", key[:, :0]), state["value"], state)
        for part, keys, values, memory in caches:
            if part.heads:
                given = ReplacedHeads(
                    query=query[:, done : done + len(part.heads)],
                    key=keys,
                    value=values,
                    start=self._kept.length - values.shape[2],
                    kv_head=part.kv_head,
                    kv_read=part.kv_read,
                    kv_place=part.kv_head,
                    per_kv=part.per_kv,
                    mask=mask,
                    first=partial(first_tokens, query, mask),
                    scale=scale,
                    sink_tokens=self.plan.sink_tokens,
                    window=self.plan.window,
                    rest_weight=None,
                    memory=memory,
                    first_layer_map=partial(self.run.pattern, part.heads),
                )
                outputs.append(self.strategy.from_heads(given).transpose(1, 2))
                done += len(part.heads)
        return torch.cat(outputs, 2)


class _Divided:
    """Stands in for the KV cache in a module's forward: takes the keys and values of a layer's KV heads, those of kept
    heads first, and keeps the others in the layer's state."""

    def __init__(self, kept: ReducedLayer, kept_kv: int, keys: bool, stored: bool) -> None:
        self._kept, self._kept_kv, self._keys, self._stored = kept, kept_kv, keys, stored

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        state, place = self._kept.state, self._kept_kv
        for name, tensor in {"key": key[:, place:], "value": value[:, place:]}.items():
            if name == "value" or self._keys:
                if name in state:
                    state[name] = torch.cat([state[name], tensor], 2)
                else:  # a copy, or the whole projection would be kept with it
                    state[name] = tensor.clone() if self._stored else tensor
        key, value = key[:, :place], value[:, :place]
        if self._stored:
            return self._kept.update(key, value)
        self._kept.length += key.shape[2]  # a layer that is thrown away
        return key, value
