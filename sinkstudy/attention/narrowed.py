"""Layers whose replaced heads run inside the module's own forward, on the projections and the KV cache they need.

Strategies that read each token's value, or its query and key as well, need those projected. Here nothing more is, and
KV heads that only replaced heads read have a cache of their own, which the strategy may shorten. Heads change their
order, kept ones first, so that every fused call reads slices; the output projection's columns follow.
"""

import torch
from torch import Tensor, nn

from sinkstudy.attention.cache import ReducedLayer
from sinkstudy.attention.layout import KvReads
from sinkstudy.attention.projections import CutModule, columns_of, rows_of
from sinkstudy.attention.run import Run


class NarrowedAttention(CutModule):
    """One attention module with its replaced heads narrowed down to what the strategy reads."""

    def __init__(self, attention: nn.Module, heads: int, run: Run) -> None:
        super().__init__(attention, heads, run)
        layout, needs = self.layout, self.strategy.projects
        shared = [h for h in layout.replaced if h // layout.per_kv not in layout.own_kv]
        own = [h for h in layout.replaced if h // layout.per_kv in layout.own_kv]
        self._shared, self._own = (
            (tuple(some), KvReads.of(tuple(kv_heads.index(h // layout.per_kv) for h in some), layout.device))
            for some, kv_heads in ((shared, layout.kept_kv), (own, layout.own_kv))
        )
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
        for (heads, reads), keys, values, memory in caches:
            if heads:
                states, start = (query[:, done : done + len(heads)], keys, values), self._kept.length - values.shape[2]
                given = self.run.given(heads, states, reads, mask, scale, memory, start=start)
                outputs.append(self.strategy.from_heads(given).transpose(1, 2))
                done += len(heads)
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
