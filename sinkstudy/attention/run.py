"""What one block under a plan knows while the model runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from sinkstudy.attention.layout import KvReads, Layout, as_index, take
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import ReplacedHeads


@dataclass
class Run:
    """State of one `with optimized(...)` block. What a prompt decided (whether it is short enough, which heads of the
    first layer are sinks, how much mass they leave) lasts from its prefill through its decoding. `cut`: by layer, the
    attention modules whose projections are cut."""

    plan: Plan
    cut: dict[int, object] = field(default_factory=dict)
    active: bool | None = None  # None: no prompt seen yet
    first_layer: int = -1
    last_layer: int = 2**31
    first_layer_heads: list[int] = field(default_factory=list)
    first_layer_map: tuple[tuple[int, ...] | None, Tensor] | None = None  # heads (None: all), their attention
    compute_pattern: Callable[[tuple[int, ...]], Tensor] | None = None  # of these heads in the first layer
    memory: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # of the strategy, by layer
    layouts: dict[tuple, Layout] = field(default_factory=dict)
    rest_weights: dict[tuple, Tensor] = field(default_factory=dict)  # the plan's, by layer and heads
    named_elsewhere: dict[int, tuple[int, ...]] = field(default_factory=dict)  # the plan's heads in all layers but one

    @property
    def mapped(self) -> tuple[int, ...]:
        """Heads whose first-layer pattern later layers need."""
        if self.plan.first_layer_threshold is not None:
            return tuple(self.first_layer_heads)
        if self.first_layer not in self.named_elsewhere:
            later = [heads for layer, heads in self.plan.heads.items() if layer != self.first_layer]
            self.named_elsewhere[self.first_layer] = tuple(sorted({h for heads in later for h in heads}))
        return self.named_elsewhere[self.first_layer]

    def replaced(self, layer: int) -> list[int]:
        """Heads of `layer` replaced for the input that runs, or ran last."""
        if not self.active:
            return []
        if self.plan.first_layer_threshold is not None:
            return [] if layer == self.first_layer else self.first_layer_heads
        if STRATEGIES[self.plan.strategy].needs_first_layer and layer == self.first_layer:
            return []  # reusing the first layer's pattern in the first layer is computing it
        return list(self.plan.heads.get(layer, ()))

    def begin(self, layer: int, prefill: bool, tokens: int) -> bool:
        """Note that a layer runs; True in the first one of a forward pass."""
        starts, self.last_layer = layer <= self.last_layer, layer
        if starts:
            self.first_layer = layer
            if prefill or self.active is None:
                self.memory.clear()
                self.active = self.plan.max_tokens is None or tokens <= self.plan.max_tokens
        return starts

    def pattern(self, heads: tuple[int, ...] | None, keys: int) -> Tensor:
        """The first layer's attention of these heads (None: all) in this forward pass, (batch, head, query, key), over
        as many keys as this layer has.

        Computed when the first later layer asks, and then for all of them.
        """
        if self.first_layer_map is None:
            mapped = self.mapped
            self.first_layer_map = mapped, self.compute_pattern(mapped)
        mapped, attention = self.first_layer_map
        if heads is None and mapped is not None:
            raise RuntimeError("the first layer's attention is at hand for some heads, and asked for of all")
        if attention.shape[3] < keys:  # its window has left the others behind
            attention = nn.functional.pad(attention, (keys - attention.shape[3], 0))
        if mapped == heads:
            return attention
        return take(attention, as_index(heads if mapped is None else _places(heads, mapped), attention.device))

    def given(
        self,
        heads: tuple[int, ...],
        states: tuple[Tensor, Tensor, Tensor],
        reads: KvReads,
        mask: Tensor | None,
        scale: float,
        memory: dict[str, Tensor],
        *,
        rest_weight: Tensor | None = None,
        start: int = 0,
    ) -> ReplacedHeads:
        """What a strategy is given of these heads: their queries, and the KV heads at hand, `states`."""
        return ReplacedHeads(
            *states,
            reads=reads,
            mask=mask,
            first=partial(first_tokens, states[0], mask),
            scale=scale,
            sink_tokens=self.plan.sink_tokens,
            window=self.plan.window,
            rest_weight=rest_weight,
            memory=memory,
            first_layer_map=partial(self.pattern, heads, states[2].shape[2]),
            start=start,
        )

    def rest_weight(self, layer: int, heads: tuple[int, ...], device: torch.device) -> Tensor | None:
        """The plan's weights of these heads, (1, head) float32; None where it leaves them to be measured."""
        if self.plan.rest_weight is None:
            return None
        if (layer, heads) not in self.rest_weights:
            weights = [[self.plan.rest_weight[layer][head] for head in heads]]
            with torch.inference_mode(False):  # what is kept may be needed for a gradient later
                self.rest_weights[layer, heads] = torch.tensor(weights, device=device)
        return self.rest_weights[layer, heads]

    def layout(self, replaced: list[int], query: Tensor, key: Tensor) -> Layout:
        wanted = (query.shape[1], key.shape[1], tuple(replaced), query.device)
        if wanted not in self.layouts:
            self.layouts[wanted] = Layout(*wanted)
        return self.layouts[wanted]


@lru_cache(maxsize=1024)
def _places(heads: tuple[int, ...], among: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(among.index(h) for h in heads)


def first_tokens(query: Tensor, mask: Tensor | None) -> Tensor:
    """Position of each sequence's first token, (batch,): the first key that any of its queries may see."""
    if mask is None:
        return torch.zeros(query.shape[0], dtype=torch.long, device=query.device)
    return mask[:, 0].any(dim=-2).int().argmax(dim=-1).expand(query.shape[0])
