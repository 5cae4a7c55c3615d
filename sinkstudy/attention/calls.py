"""The calls by which a layer attends under a plan: fused ones for the heads it keeps, the strategy's for the others."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sinkstudy.attention.cache import PlannedLayer
from sinkstudy.attention.heads import (
    AttentionInputs,
    HeadPartition,
    HeadToKV,
    Index,
    KeptGroup,
    select_heads,
)
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import ReplacedHeads


class LayerCall(NamedTuple):
    """One layer that attends. `inputs`: where `is_split`, of the KV heads that kept heads read, else of all. `past`:
    tokens before these queries. `first_layer_pattern(heads, keys)`: see `PlanState`.

    `is_split`: whether replaced heads have KV heads of their own in the `cache`. `joins`: whether the others attend
    beside the kept ones with which they share KV heads, under a mask of their own: where a single query reads a cache
    that is kept whole for the kept heads, another call would take longer.
    """

    layer: int
    inputs: AttentionInputs
    partition: HeadPartition
    cache: PlannedLayer | None
    past: int
    first_layer_pattern: Callable[[tuple[int, ...], int], Tensor]
    is_split: bool
    joins: bool


class HeadCalls:
    """The calls that one plan asks of every layer. What depends on the layer's heads alone is worked out once."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.strategy = plan, STRATEGIES[plan.strategy]
        self._rest_weights: dict[tuple, Tensor] = {}
        self._replaced: dict[tuple, list] = {}
        self._seen: dict[tuple, tuple[Tensor, Tensor]] = {}

    def kept(self, call: LayerCall) -> list[KeptGroup]:
        """The fused calls over kept heads."""
        if call.joins:
            return [self._with_replaced_readers(call)]
        if call.is_split:
            return call.partition.groups_of_split_cache
        return call.partition.decode_groups if call.inputs.query.shape[2] == 1 else call.partition.prefill_groups

    def _with_replaced_readers(self, call: LayerCall) -> KeptGroup:
        partition, query, keys = call.partition, call.inputs.query, call.inputs.key.shape[2]
        key = call.layer, partition, query.dtype
        if key not in self._seen or self._seen[key][1].shape[-1] < keys:
            # The mask has room for twice the keys, so that it is not made again for every token.
            self._seen[key] = self._seen_by_readers(call.layer, partition, query, 2 * keys)
        sinks, recent = self._seen[key]
        sinks = sinks[..., :keys]
        mask = torch.cat([sinks, recent[..., recent.shape[-1] - keys + sinks.shape[-1] :]], -1)
        return partition.readers_group._replace(mask=mask)

    @torch.inference_mode(False)
    def _seen_by_readers(self, layer: int, partition: HeadPartition, query: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """What a single query of `readers` sees, as masks: over the sink tokens, and over the latest `keys`, of which
        the end is that over fewer."""
        sinks, recent = (query.new_zeros(1, len(partition.readers), 1, n) for n in (self.plan.sink_tokens, keys))
        for place, head in enumerate(partition.readers):
            if head in partition.replaced:
                recent[:, place, :, : max(0, keys - self.plan.window_of(layer, head))] = -torch.inf
        return sinks, recent

    def replaced(self, call: LayerCall) -> Iterator[tuple[Index, ReplacedHeads]]:
        """Replaced heads of one window, and what the strategy is given of them: at once, or, where the layer's cache is
        split, first those that share KV heads with kept ones, then those whose KV heads the strategy keeps."""
        inputs, partition = call.inputs, call.partition
        if call.is_split:
            shared = tuple(partition.kept_kv), inputs.key, inputs.value, None
            parts = [*([] if call.joins else [shared]), *self._of_own_caches(call)]
        else:
            parts = [(tuple(range(partition.kv_heads)), inputs.key, inputs.value, None)]
        for kv_heads, key, value, cached in parts:
            calls = self._of(call.layer, partition, kv_heads)
            for heads, index, to_kv, window in calls:
                given = ReplacedHeads(
                    query=select_heads(inputs.query, index),
                    key=key,
                    value=value,
                    to_kv=to_kv,
                    mask=inputs.mask,
                    scale=inputs.scale,
                    sink_tokens=self.plan.sink_tokens,
                    window=window,
                    rest_weight=self.rest_weight(call.layer, heads, partition.device),
                    memory={} if call.cache is None else call.cache.state,
                    # The last call has the widest window, and no later one reads what it forgets.
                    cached=cached if heads is calls[-1][0] else None,
                    first_layer_pattern=partial(call.first_layer_pattern, heads, key.shape[2]),
                    start=call.past + inputs.query.shape[2] - key.shape[2],
                )
                yield index, given

    def _of_own_caches(self, call: LayerCall) -> Iterator[tuple]:
        """KV heads that only replaced heads read, their keys and values, and the cache that keeps these."""
        for kv_heads, own in zip(call.cache.own_kv, call.cache.own, strict=True):
            *_, narrowest = self._of(call.layer, call.partition, kv_heads)[0]
            fits = own.fits(self.plan.sink_tokens, narrowest)
            # Where a single query sees every token that is kept, their order makes no difference.
            sees_all = call.inputs.query.shape[2] == 1 and call.inputs.mask is None and fits
            yield kv_heads, *(own.held if sees_all else own.ordered), own

    def _of(
        self, layer: int, partition: HeadPartition, kv_heads: tuple[int, ...]
    ) -> list[tuple[tuple[int, ...], Index, HeadToKV, int]]:
        """The replaced heads that read these KV heads, in so many calls as the strategy needs: those of one window, as
        many for each KV head. The heads, their index, which of the KV heads they read, and their window."""
        key = layer, partition, kv_heads
        if key not in self._replaced:
            here = [h for h in partition.replaced if partition.kv_of(h) in kv_heads]
            calls = list(self.plan.by_window(layer, here).items())
            if self.strategy.forgets_tokens:
                calls = [(window, some) for window, of in calls for some in partition.evenly(of)]
            self._replaced[key] = [
                (
                    heads,
                    partition.index(heads),
                    HeadToKV.of(tuple(kv_heads.index(partition.kv_of(h)) for h in heads), partition.device),
                    window,
                )
                for window, heads in calls
            ]
        return self._replaced[key]

    def rest_weight(self, layer: int, heads: tuple[int, ...], device: torch.device) -> Tensor | None:
        """The plan's weights of these heads, (1, head) float32; None where it leaves them to be measured."""
        if self.plan.rest_weight is None:
            return None
        if (layer, heads, device) not in self._rest_weights:
            weights = [[self.plan.rest_weight[layer][head] for head in heads]]
            # A tensor made in inference mode could not be used later where gradients are recorded.
            with torch.inference_mode(False):
                self._rest_weights[layer, heads, device] = torch.tensor(weights, device=device)
        return self._rest_weights[layer, heads, device]
