"""What a model that runs under a plan knows: of the block, of the prompt, of the forward pass."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from sinkstudy.attention.cache import PlannedLayer, Split, SplitKVCache, as_planned
from sinkstudy.attention.calls import HeadCalls, LayerCall
from sinkstudy.attention.heads import AttentionInputs, as_index, partition_heads, select_heads
from sinkstudy.attention.pattern import attention_pattern, sink_heads
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.untraced import untraced
from sinkstudy.errors import StudyError

# A KV cache carries what its prompt decided under this attribute.
_PROMPT = "sinkstudy_prompt"


@dataclass
class Prompt:
    """What a prompt decided. It stays with the prompt's KV cache, also through copies of it.

    `active`: whether the plan covers a prompt of this length.
    """

    plan: Plan
    depth: str
    active: bool
    first_layer_heads: tuple[int, ...] = ()


class ForwardPass(threading.local):
    """The forward pass that runs in this thread, or ran last in it.

    `first_layer`: the first that attends, once it is `reached`. `layer_caches`: those of the layers that the plan may
    change, which are read where it is active. `past`: tokens in the cache before the pass. `mask`: the latest
    that was found to be causal. `first_inputs`: what the first layer's attention was called with. `pattern`: the first
    layer's attention of the heads `pattern_heads`, all that later layers ask for.
    """

    prompt: Prompt | None = None
    first_layer: int | None = None
    reached: bool = False
    past: int = 0
    layer_caches: Mapping[int, PlannedLayer] = MappingProxyType({})
    first_inputs: AttentionInputs | None = None
    mask: Tensor | None = None
    pattern: Tensor | None = None
    pattern_heads: tuple[int, ...] = ()


class PlanState:
    """One `with optimized(...)` block. `layers`: those that attend and may have replaced heads. `pruned`: those of them
    that do not project these. `by_input`: whether the first layer's attention decides which heads are replaced.
    `looks_back`: whether later layers need that attention, so that the first layer keeps its heads."""

    def __init__(self, model: PreTrainedModel, plan: Plan, depth: str, attending: Iterable[int]) -> None:
        self.plan, self.depth, self.strategy = plan, depth, STRATEGIES[plan.strategy]
        self.config = model.config.get_text_config()
        self.by_input = plan.first_layer_threshold is not None
        self.looks_back = self.by_input or self.strategy.needs_first_layer
        self.layers = frozenset(n for n in attending if self.by_input or n in plan.heads)
        self.pruned: frozenset[int] = frozenset()
        self.now = ForwardPass()
        self.calls = HeadCalls(plan)

    def __reduce_ex__(self, protocol: object) -> object:
        raise StudyError(
            "a model that runs under a plan can be neither copied nor pickled; do that outside `with optimized(...)`."
        )

    # The methods that change the state are kept out of compiled graphs, which would record one state for good.
    @untraced
    def begin_pass(self, model: PreTrainedModel, *_: object) -> None:
        """Runs before every forward pass of the model."""
        self.now.__dict__.clear()
        if self.looks_back and model.training and torch.is_grad_enabled() and model.is_activation_checkpointing:
            raise StudyError(
                "gradient checkpointing runs layers again without the first one, which this plan's other layers need; "
                "call model.gradient_checkpointing_disable() first."
            )

    @untraced
    def enter_pass(self, first: nn.Module, args: tuple, kwargs: dict) -> None:
        """Runs before the first attention module: finds the prompt that the pass continues, and the caches of all
        layers that the plan may change."""
        now, layer = self.now, first.layer_idx
        now.reached = True
        cache = next((one for one in (*args, *kwargs.values()) if isinstance(one, Cache)), None)
        if now.first_layer is None:
            now.first_layer = layer
            now.past = 0 if cache is None else int(cache.get_seq_length(layer))
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            now.prompt = self._prompt_of(cache, layer, hidden.shape[1])
        if cache is not None and (now.prompt.active or now.past == 0):
            now.layer_caches = {one: self._layer_cache(cache, one) for one in self.layers}

    def enter_layer(self, layer: int) -> bool:
        """Whether the plan is active in this pass. Raises StudyError where a layer runs in a pass that was not entered:
        in code compiled before the block."""
        now = self.now
        if now.first_layer is None or (layer == now.first_layer and not now.reached):
            raise StudyError(
                f"layer {layer} runs without the hooks of `with optimized(...)`; compile a model inside the block, and "
                "call modules, not their forward."
            )
        now.reached = layer == now.first_layer
        return now.prompt.active

    def check_mask(self, mask: Tensor | None) -> None:
        """Raises StudyError where more or less is masked than what comes later and what is padding."""
        if mask is None or mask is self.now.mask:
            return
        queries, keys = mask.shape[-2:]
        causal = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(self.now.past)
        if mask.dtype != torch.bool or not torch.equal(mask, causal & mask.any(-2, keepdim=True)):
            raise StudyError(
                "the attention mask is of numbers, or not causal with padding alone (several prompts in one row, a "
                "prefix that sees itself whole), which plans do not cover; give every prompt a row and a 2D mask."
            )
        self.now.mask = mask

    def _prompt_of(self, cache: Cache | None, layer: int, queries: int) -> Prompt:
        """The prompt whose cache is continued, or a new one, also for a cache that was filled unmodified."""
        known = getattr(cache, _PROMPT, None)
        # An active prompt whose layer no plan owns any more was in the cache before it was emptied and filled outside.
        is_gone = known is not None and known.active and not getattr(cache.layers[layer], "owned", True)
        if self.now.past == 0 or is_gone:
            known = None
        if known is not None and known.depth == self.depth and known.plan == self.plan:
            return known
        if known is not None and known.active:
            raise StudyError(
                f"this KV cache was filled under another plan ({known.plan.strategy}, depth {known.depth}); continue "
                "it under that plan, or begin with an empty cache."
            )
        prompt = Prompt(self.plan, self.depth, active=self.plan.covers(self.now.past + queries))
        if cache is not None:
            setattr(cache, _PROMPT, prompt)
        return prompt

    def _layer_cache(self, cache: Cache, layer: int) -> CacheLayerMixin:
        """The layer's own cache, one that may be split in place of an empty dynamic one, and, where the plan is active,
        one that tells where it does not belong."""
        if cache.layer_class_to_replicate is not None:
            cache.layers += [cache.layer_class_to_replicate() for _ in range(layer + 1 - len(cache.layers))]
        found, active = cache.layers[layer], self.now.prompt.active
        if type(found) in (DynamicLayer, SplitKVCache) and found.get_seq_length() == 0 and not cache.offloading:
            found = SplitKVCache(pruned=layer in self.pruned, split=self._split(layer)) if active else DynamicLayer()
        if active:
            found = as_planned(found)
            found.entered = found.owned = True
        cache.layers[layer] = found
        return found

    def _split(self, layer: int) -> Split | None:
        """How the layer's cache parts; None where it holds every KV head alike."""
        replaced = self.replaced_heads(layer)
        if not replaced or not self.strategy.forgets_tokens or slides(self.config, layer):
            return None
        windows = {head: self.plan.window_of(layer, head) for head in replaced}
        return Split(self.config.num_attention_heads, windows)

    def replaced_heads(self, layer: int) -> tuple[int, ...]:
        """Heads of `layer` replaced in the pass that runs, or ran last, in this thread."""
        prompt = self.now.prompt
        if prompt is None or not prompt.active or (self.looks_back and layer == self.now.first_layer):
            return ()
        return prompt.first_layer_heads if self.by_input else tuple(self.plan.heads.get(layer, ()))

    def _see_first_layer(self, inputs: AttentionInputs) -> None:
        """Runs before the first layer's attention: decides which heads are sinks where the plan leaves it to the input,
        and remembers what `first_layer_pattern` needs."""
        now = self.now
        if self.by_input and now.past == 0:
            now.prompt.first_layer_heads = sink_heads(inputs, self.plan.first_layer_threshold)
            for layer, cache in now.layer_caches.items():
                if isinstance(cache, SplitKVCache):
                    cache.split = self._split(layer)
        if self.strategy.needs_first_layer:
            now.first_inputs = inputs

    def first_layer_pattern(self, heads: tuple[int, ...], keys: int) -> Tensor:
        """The first layer's attention of these heads in this pass, (batch, head, query, key), to the latest `keys`."""
        now = self.now
        if now.pattern is None:
            now.pattern_heads = tuple(sorted(set().union(*map(self.replaced_heads, self.layers))))
            now.pattern = attention_pattern(now.first_inputs, now.pattern_heads)
        places = tuple(now.pattern_heads.index(h) for h in heads)
        pattern = select_heads(now.pattern, as_index(places, now.pattern.device))
        # A first layer with a sliding window no longer sees the oldest keys.
        behind = keys - pattern.shape[3]
        return nn.functional.pad(pattern, (behind, 0)) if behind else pattern

    def layer_call(self, layer: int, inputs: AttentionInputs, sliding_window: int | None) -> LayerCall | None:
        """The layer that attends now, with its heads as they are kept or replaced in this pass. None where none is
        replaced, or its window is full."""
        now, mask = self.now, inputs.mask
        inputs = inputs.until(now.past + inputs.query.shape[2])
        if layer == now.first_layer:
            self._see_first_layer(inputs)
        replaced, query, key = self.replaced_heads(layer), inputs.query, inputs.key
        if not replaced or (sliding_window is not None and key.shape[2] >= sliding_window):
            return None
        self.check_mask(mask)
        cache = now.layer_caches.get(layer)
        partition = None if cache is None else cache.partition
        if partition is None:
            partition = partition_heads(query.shape[1], key.shape[1], replaced, query.device)
        joins = partition.is_split and partition.shares_kv and query.shape[2] == 1 and mask is None
        return LayerCall(layer, inputs, partition, cache, now.past, self.first_layer_pattern, joins)


def slides(config: object, layer: int) -> bool:
    """Whether the layer has a sliding window."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return types[layer] != "full_attention"
    return getattr(config, "sliding_window", None) is not None
