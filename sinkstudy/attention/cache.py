"""The KV cache of a layer some of whose heads are replaced."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from sinkstudy.attention.heads import HeadPartition, partition_heads, select_heads
from sinkstudy.errors import StudyError


class SplitKVCache(DynamicLayer):
    """Keys and values of KV heads that kept heads read, and in `state` what the strategy keeps of the others, batch
    first.

    `whole`: whether the keys and values of every token and every KV head are in it. Where `split` names the number of
    query heads and the replaced ones, KV heads that only these read go to "key" and "value" of `state`, which the
    strategy may shorten; `update` returns the others. `entered` is set each time a layer that runs under the plan is
    about to `update`: whoever else does continues the cache where it does not belong, unless it is empty; then it is
    `owned` by no plan any more.
    """

    def __init__(self, *, whole: bool, split: tuple[int, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.whole, self.split = whole, split
        self.partition: HeadPartition | None = None  # a split cache knows it from the first `update` on
        self.state: dict[str, Tensor] = {}
        self.entered, self.owned = False, True

    @property
    def is_croppable(self) -> bool:
        return self.whole

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if self.owned and not self.entered:
            if self.get_seq_length() > 0:
                raise StudyError(
                    "this KV cache was filled under a plan; continue it inside `with optimized(...)` with that plan."
                )
            # The cache was emptied, and whoever fills it now runs under no plan.
            self.owned, self.whole, self.split = False, True, None
        self.entered = False
        if self.split is not None:
            heads, replaced = self.split
            self.partition = partition_heads(heads, key_states.shape[1], replaced, key_states.device)
            index = self.partition.index
            own, kept = index(self.partition.replaced_only_kv), index(self.partition.kept_kv)
            for name, states in {"key": key_states, "value": value_states}.items():
                before = [self.state[name]] if name in self.state else []
                self.state[name] = torch.cat([*before, select_heads(states, own)], 2)
            key_states, value_states = select_heads(key_states, kept), select_heads(value_states, kept)
        return super().update(key_states, value_states)

    def get_seq_length(self) -> int:
        # The inherited method takes a cache without KV heads for an empty one.
        return self.keys.shape[-2] if self.is_initialized else 0

    def tensors(self) -> list[Tensor]:
        stored = [self.keys, self.values] if self.is_initialized else []
        return [*stored, *self.state.values()]

    def reset(self) -> None:
        super().reset()
        self.state = {}

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0 and not self.whole:
            raise StudyError(
                "a KV cache filled under a plan cannot be shortened: replaced heads keep no single tokens."
            )
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda t: t.index_select(0, indices.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda t: t.repeat_interleave(repeats, dim=0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
        self.state = {name: change(t) for name, t in self.state.items()}


def cache_bytes(cache: Cache) -> int:
    """Bytes of every tensor a cache holds."""
    held: list[Tensor] = []
    for layer in cache.layers:
        held += layer.tensors() if isinstance(layer, SplitKVCache) else [layer.keys, layer.values]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))
