"""The KV cache of a layer some of whose KV heads are not kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from sinkstudy.errors import StudyError


class ReducedLayer(DynamicLayer):
    """Keys and values of the kept KV heads, and in `state` what the strategy needs of the others, batch first.

    `length` counts the tokens seen: a layer that keeps no KV head stores no keys to count.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Tensor] = {}
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.length += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.length

    def tensors(self) -> list[Tensor]:
        stored = [self.keys, self.values] if self.is_initialized else []
        return [*stored, *self.state.values()]

    def reset(self) -> None:
        super().reset()
        self.state, self.length = {}, 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise StudyError(
                "a KV cache filled under a plan cannot be shortened: replaced heads keep no single tokens."
            )

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


def reduced_layer(cache: Cache | None, layer: int) -> ReducedLayer | None:
    """The layer's reduced cache, put in place of a fresh dynamic one; without a cache, one that is thrown away. None
    where the cache is of another kind or was filled with all KV heads."""
    if cache is None:
        return ReducedLayer()
    if cache.offloading:
        return None
    if cache.layer_class_to_replicate is DynamicLayer:
        while len(cache.layers) <= layer:
            cache.layers.append(DynamicLayer())
    found = cache.layers[layer] if layer < len(cache.layers) else None
    if type(found) is DynamicLayer and found.get_seq_length() == 0:
        found = cache.layers[layer] = ReducedLayer()
    return found if isinstance(found, ReducedLayer) else None


def cache_bytes(cache: Cache) -> int:
    """Bytes of every tensor a cache holds."""
    held: list[Tensor] = []
    for layer in cache.layers:
        held += layer.tensors() if isinstance(layer, ReducedLayer) else [layer.keys, layer.values]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, torch.Tensor))
