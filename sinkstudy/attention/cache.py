"""The KV cache of a layer some of whose heads are replaced."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from sinkstudy.attention.heads import HeadPartition, partition_heads, select_heads
from sinkstudy.attention.recent import RecentTokens
from sinkstudy.attention.untraced import untraced
from sinkstudy.errors import StudyError


class Split(NamedTuple):
    """How a layer's KV heads part: it has so many query `heads`, and those in `windows` are replaced by one each."""

    heads: int
    windows: dict[int, int]


class PlannedLayer:
    """Mixed into the class of a layer's cache while a plan runs, so that it tells where it does not belong.

    `state`: what the strategy keeps of the layer, batch first. `entered` is set each time a layer that runs under the
    plan is about to `update`: whoever else does continues the cache outside, unless it is empty; then it is `owned` by
    no plan any more. `pruned`: whether no KV heads but those of kept heads come to it. `split`: how it parts these that
    come; None where it holds all alike.
    """

    entered, owned, pruned = False, True, False
    split: Split | None = None
    partition: HeadPartition | None = None
    state: dict[str, Tensor]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.check_entered()
        return super().update(key_states, value_states, *args, **kwargs)

    def check_entered(self) -> None:
        if self.owned and not self.entered:
            if self.get_seq_length() > 0:
                raise StudyError(
                    "this KV cache was filled under a plan; continue it inside `with optimized(...)` with that plan."
                )
            # The cache was emptied, and whoever fills it now runs under no plan.
            self.owned, self.pruned, self.split, self.partition = False, False, None, None
        self.entered = False

    def reset(self) -> None:
        super().reset()
        self.state, self.entered = {}, False  # An error in a pass leaves layers entered that were never reached.

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.change_state(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.change_state(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.change_state(lambda t: t.repeat_interleave(repeats, dim=0))

    def change_state(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state = {name: change(t) for name, t in self.state.items()}


def as_planned(layer: CacheLayerMixin) -> PlannedLayer:
    """A `PlannedLayer` that holds what the cache of a layer, of whatever kind, does."""
    return layer if isinstance(layer, PlannedLayer) else _made(type(layer), vars(layer) | {"state": {}})


def _made(kind: type[CacheLayerMixin], attributes: dict[str, object]) -> PlannedLayer:
    layer = object.__new__(_planned(kind))
    vars(layer).update(attributes)
    return layer


@cache
def _planned(kind: type[CacheLayerMixin]) -> type[PlannedLayer]:
    # Transformers registers every subclass that has a `_layer_type`, so this one has none. Pickle cannot find a class
    # that is made here by its name, so `_made` makes it again.
    attributes = {"_layer_type": None, "__reduce__": lambda layer: (_made, (kind, vars(layer)))}
    return type(f"Planned{kind.__name__}", (PlannedLayer, kind), attributes)


class SplitKVCache(PlannedLayer, DynamicLayer):
    """Keys and values of KV heads that kept heads read; the rest is in `state`.

    With a `split`, KV heads that only replaced heads read go to one of `own`, where those are together whose widest
    window is the same, and which the strategy may shorten; `update` returns the others. `own_kv`: the KV heads in each.
    """

    def __init__(self, *, pruned: bool, split: Split | None) -> None:
        super().__init__()
        self.pruned, self.split, self.state = pruned, split, {}
        self.own: list[RecentTokens] = []
        self.own_kv: list[tuple[int, ...]] = []

    @property
    def is_croppable(self) -> bool:
        return self.split is None and not self.pruned

    # This method changes the cache's state, which a compiled graph would fix at its first value.
    @untraced
    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.check_entered()
        if self.split is not None:
            if self.partition is None:
                self._partition(key_states)
            for own, places in zip(self.own, self._own_places, strict=True):
                own.append(select_heads(key_states, places), select_heads(value_states, places))
            kept = self._kept_places
            key_states, value_states = select_heads(key_states, kept), select_heads(value_states, kept)
        return DynamicLayer.update(self, key_states, value_states)

    def _partition(self, key_states: Tensor) -> None:
        heads, windows = self.split
        replaced, kv_heads = tuple(sorted(windows)), key_states.shape[1]
        self.partition = partition_heads(heads, kv_heads, replaced, key_states.device, is_split=True)
        only = [kv for kv in range(kv_heads) if kv not in self.partition.kept_kv]
        widest = {kv: max(w for head, w in windows.items() if self.partition.kv_of(head) == kv) for kv in only}
        self.own_kv = [tuple(kv for kv in only if widest[kv] == width) for width in sorted(set(widest.values()))]
        self.own = [RecentTokens() for _ in self.own_kv]
        self._own_places = list(map(self.partition.index, self.own_kv))
        self._kept_places = self.partition.index(self.partition.kept_kv)

    def reset(self) -> None:
        super().reset()
        self.own = [RecentTokens() for _ in self.own]

    def change_state(self, change: Callable[[Tensor], Tensor]) -> None:
        super().change_state(change)
        for own in self.own:
            own.change(change)

    def get_seq_length(self) -> int:
        # The inherited method would take a cache without KV heads for an empty one.
        return self.keys.shape[-2] if self.is_initialized else 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0 and not self.is_croppable:
            raise StudyError(
                "a KV cache filled under a plan cannot be shortened: replaced heads keep no single tokens."
            )
        super().crop(tokens_to_remove)


def cache_bytes(cache: Cache) -> int:
    """Bytes of all keys and values that a cache holds, and of what strategies keep; layers that do not attend have
    none."""
    held = []
    for layer in cache.layers:
        held += [getattr(layer, "keys", None), getattr(layer, "values", None), *getattr(layer, "state", {}).values()]
        held += [t for own in getattr(layer, "own", ()) for t in own.held]
    return sum(t.nbytes for t in held if t is not None)
