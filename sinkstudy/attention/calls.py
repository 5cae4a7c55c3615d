"""The calls by which a layer attends under a plan: fused ones for the heads it keeps, the strategy's for the others."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sinkstudy.attention.cache import PlannedLayer
from sinkstudy.attention.heads import AttentionInputs, HeadPartition, HeadToKV, Index, KeptGroup, select_heads
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import ReplacedHeads


class LayerCall(NamedTuple):
    """One layer that attends. `inputs`: of the KV heads `partition.kv_at_hand`. `past`: tokens before these queries.
    `first_layer_pattern(heads, keys)`: see `PlanState`.

    `joins`: whether replaced heads that share KV heads with kept ones attend beside these, under a mask of their own:
    where a single query reads a cache that is kept whole for the kept heads, another call would take longer.
    """

    layer: int
    inputs: AttentionInputs
    partition: HeadPartition
    cache: PlannedLayer | None
    past: int
    first_layer_pattern: Callable[[tuple[int, ...], int], Tensor]
    joins: bool


class ReplacedGroup(NamedTuple):
    """Replaced heads of one layer and one window, and which of the KV heads at hand they read."""

    heads: tuple[int, ...]
    index: Index
    to_kv: HeadToKV
    window: int


class HeadCalls:
    """The calls that one plan asks of every layer. What depends on the layer's heads alone is worked out once."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.strategy = plan, STRATEGIES[plan.strategy]
        self.rest_weight = cache(self._rest_weight)
        self._groups = cache(self._groups_of)
        self._mask = cache(self._mask_of)

    def kept(self, call: LayerCall) -> list[KeptGroup]:
        """The fused calls over kept heads."""
        if call.joins:
            return [self._with_replaced_readers(call)]
        return call.partition.decode_groups if call.inputs.query.shape[2] == 1 else call.partition.prefill_groups

    def _with_replaced_readers(self, call: LayerCall) -> KeptGroup:
        keys = call.inputs.key.shape[2]
        sinks = min(self.plan.sink_tokens, keys)
        # The mask is made for more keys than there are, so that it is not made again for every token.
        seen = self._mask(call.layer, call.partition, call.inputs.query.dtype, 1 << keys.bit_length())
        mask = nn.functional.pad(seen[..., seen.shape[-1] - keys + sinks :], (sinks, 0))
        return call.partition.readers_group._replace(mask=mask)

    @torch.inference_mode(False)
    def _mask_of(self, layer: int, partition: HeadPartition, dtype: torch.dtype, keys: int) -> Tensor:
        """What a single query of `readers` sees of the latest `keys`, (1, head, 1, key): 0 there, -inf elsewhere. Its
        end is that of fewer keys."""
        seen = torch.zeros(1, len(partition.readers), 1, keys, dtype=dtype, device=partition.device)
        for place, head in enumerate(partition.readers):
            if head in partition.replaced:
                seen[:, place, :, : -self.plan.window_of(layer, head)] = -torch.inf
        return seen

    def replaced(self, call: LayerCall) -> Iterator[tuple[Index, ReplacedHeads]]:
        """Replaced heads of one window, and what the strategy is given of them: first those that read KV heads at hand,
        unless they have joined the kept ones, then those whose KV heads the strategy keeps."""
        inputs, partition = call.inputs, call.partition
        parts = [] if call.joins else [(partition.kv_at_hand, None)]
        if partition.is_split:
            parts += zip(call.cache.own_kv, call.cache.own, strict=True)
        is_step = inputs.query.shape[2] == 1 and inputs.mask is None
        for kv_heads, own in parts:
            groups = self._groups(call.layer, partition, kv_heads)
            if own is None:
                key, value = inputs.key, inputs.value
            elif is_step and own.held[0].shape[2] <= self.plan.sink_tokens + groups[0].window:
                # A single query sees every token that is kept, so that their order makes no difference.
                key, value = own.held
            else:
                key, value = own.ordered
            for group in groups:
                given = ReplacedHeads(
                    query=select_heads(inputs.query, group.index),
                    key=key,
                    value=value,
                    to_kv=group.to_kv,
                    mask=inputs.mask,
                    scale=inputs.scale,
                    sink_tokens=self.plan.sink_tokens,
                    window=group.window,
                    rest_weight=self.rest_weight(call.layer, group.heads, partition.device),
                    memory={} if call.cache is None else call.cache.state,
                    # The last call has the widest window, and no later one reads what it forgets.
                    cached=own if group is groups[-1] else None,
                    first_layer_pattern=partial(call.first_layer_pattern, group.heads, key.shape[2]),
                    start=call.past + inputs.query.shape[2] - key.shape[2],
                )
                yield group.index, given

    def _groups_of(self, layer: int, partition: HeadPartition, kv_heads: tuple[int, ...]) -> list[ReplacedGroup]:
        """The replaced heads that read these KV heads, in so many calls as the strategy needs: those of one window, the
        narrowest first, as many for each KV head."""
        here = [h for h in partition.replaced if partition.kv_of(h) in kv_heads]
        calls = list(self.plan.by_window(layer, here).items())
        if self.strategy.forgets_tokens:
            calls = [(window, some) for window, of in calls for some in partition.evenly(of)]
        return [
            ReplacedGroup(heads, partition.index(heads), partition.to_kv(heads, kv_heads), window)
            for window, heads in calls
        ]

    # A tensor made in inference mode could not be used later where gradients are recorded.
    @torch.inference_mode(False)
    def _rest_weight(self, layer: int, heads: tuple[int, ...], device: torch.device) -> Tensor | None:
        """The plan's weights of these heads, (1, head) float32; None where it leaves them to be measured."""
        if self.plan.rest_weight is None:
            return None
        weights = self.plan.rest_weight[layer]
        return torch.tensor([[weights[head] for head in heads]], device=device)
