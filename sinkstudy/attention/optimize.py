"""Running a loaded model under a plan, through Transformers' attention interface.

Two depths. On every model that goes through the interface, attention of replaced heads is not computed; kept heads run
on SDPA, as all heads do in layers the plan leaves alone. On models whose projections can be cut, replaced heads are not
projected either (`projections`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sinkstudy.attention.cut import CutAttention
from sinkstudy.attention.explicit import apply_pattern, pattern_of
from sinkstudy.attention.layout import KvReads, Layout, are_few, as_index, is_small, put, take
from sinkstudy.attention.narrowed import NarrowedAttention
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.projections import cuttable_layers
from sinkstudy.attention.run import Run, first_tokens
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.errors import StudyError

_NAME = "sinkstudy_optimized"
DEPTHS = ("projections", "attention")


_runs: "WeakKeyDictionary[nn.Module, Run]" = WeakKeyDictionary()  # by attention module, so that any thread finds it


@contextmanager
def optimized(model: PreTrainedModel, plan: Plan, depth: str = "projections") -> Iterator[Run | None]:
    """Run `model(...)` and `model.generate(...)` under `plan` inside the block; restore the model exactly after it.

    `depth` "projections" cuts replaced heads out of the projections where model and strategy allow it, and leaves out
    only their attention elsewhere; "attention" does the latter everywhere. Works with the default (dynamic) KV cache.
    A cache filled inside the block belongs to it; one filled before may be continued. Layers with a sliding window run
    under the plan only while the context is shorter than the window.

    Yields the run's state (None for an empty plan, which changes nothing). Raises StudyError when the plan names a
    layer or head the model does not have, the model does not go through the attention interface, or it already runs
    under a plan.
    """
    _check(model, plan, depth)
    if plan.is_empty:
        yield None
        return
    AttentionInterface.register(_NAME, _optimized_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    run = Run(plan)
    if depth == "projections":
        heads = model.config.get_text_config().num_attention_heads
        layers = cuttable_layers(model, plan)
        kind = CutAttention if STRATEGIES[plan.strategy].from_hidden else NarrowedAttention
        run.cut = {layer: kind(module, heads, run) for layer, module in layers.items()}
    modules = [module for module in model.modules() if hasattr(module, "layer_idx")]
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    _runs.update(dict.fromkeys(modules, run))
    for cut in run.cut.values():
        cut.install()
    try:
        yield run
    finally:
        for cut in run.cut.values():
            cut.remove()
        for module in modules:
            del _runs[module]
        model.set_attn_implementation(before)


def _check(model: PreTrainedModel, plan: Plan, depth: str) -> None:
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if depth not in DEPTHS:
        raise StudyError(f"optimized: depth {depth!r} is unknown; use one of {', '.join(DEPTHS)}.")
    for layer, named in plan.heads.items():
        bad = [h for h in named if not 0 <= h < heads]
        if not 0 <= layer < layers or bad:
            raise StudyError(
                f"plan: layer {layer}, head {bad[0] if bad else named[0]} does not exist; the model has layers 0 to "
                f"{layers - 1} of heads 0 to {heads - 1}."
            )
    if not plan.is_empty and not model._can_set_attn_implementation():
        raise StudyError(
            f"model type {model.config.model_type!r} computes attention by itself; plans need a model that goes "
            "through Transformers' attention interface."
        )
    if not plan.is_empty and any(module in _runs for module in model.modules()):
        raise StudyError("this model already runs under a plan; leave that `with optimized(...)` block first.")


def _optimized_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **features: object,
) -> tuple[Tensor, None]:
    """The registered attention function: output (batch, query, head, width), and no weights."""
    run, layer = _runs[module], module.layer_idx
    if features.get("softcap") is not None or features.get("s_aux") is not None:
        raise StudyError(f"{type(module).__name__} caps its scores or learns sinks, which plans do not cover yet.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer in run.cut and run.cut[layer].running:
        return run.cut[layer].attend(query, key, value, attention_mask, scale), None
    prefill, pattern = query.shape[-2] == key.shape[-2], None
    if run.begin(layer, prefill, key.shape[-2]):
        pattern = _first_layer(run, query, key, attention_mask, scale, prefill)
    window = features.get("sliding_window")
    replaced = run.replaced(layer)
    if not replaced and pattern is not None:
        reads = KvReads.evenly(query.shape[1], key.shape[1], query.device)
        return apply_pattern(pattern, value, reads).transpose(1, 2), None
    if not replaced or (window is not None and key.shape[-2] >= window):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **features)
    return _attend(run, layer, replaced, (query, key, value), attention_mask, scale), None


def _attend(
    run: Run,
    layer: int,
    replaced: list[int],
    states: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Kept heads by SDPA, replaced ones by the plan's strategy: (batch, query, head, width)."""
    query, key, value = states
    layout, strategy = run.layout(replaced, query, key), STRATEGIES[run.plan.strategy]
    if strategy.needs_first_layer and is_small(query, key) and (query.shape[2] > 1 or are_few(key)):
        return _attend_explicitly(run, layout, states, mask, scale)
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    for group in layout.groups(query, key):
        put(output, group.queries, group.attend(query, key, value, mask, scale))
    given = run.given(
        layout.replaced,
        (take(query, layout.replaced_index), key, value),
        layout.reads,
        mask,
        scale,
        run.memory.setdefault(layer, {}),
        rest_weight=run.rest_weight(layer, layout.replaced, query.device),
    )
    put(output, layout.replaced_index, strategy.from_heads(given).transpose(1, 2))
    return output


def _attend_explicitly(
    run: Run, layout: Layout, states: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, scale: float
) -> Tensor:
    """The same in a small call of a strategy that takes the first layer's pattern: one product for all heads."""
    query, key, value = states
    reads = KvReads.evenly(layout.heads, layout.kv_heads, query.device)
    if not layout.kept:
        return apply_pattern(run.pattern(None, key.shape[2]), value, reads).transpose(1, 2)
    if are_few(key) or 4 * len(layout.kept_kv) >= 3 * layout.kv_heads:  # leaving out few takes longer than it saves
        pattern = pattern_of(query, key, reads, mask, scale)
    else:
        pattern = query.new_empty(*query.shape[:3], key.shape[2], dtype=torch.float32)
        for group in layout.short_groups:
            some, keys = query[:, group.queries], key[:, group.kv]
            some_reads = KvReads.evenly(some.shape[1], keys.shape[1], query.device)
            pattern[:, group.queries] = pattern_of(some, keys, some_reads, mask, scale)
    pattern = torch.where(layout.is_replaced, run.pattern(None, key.shape[2]), pattern)
    return apply_pattern(pattern, value, reads).transpose(1, 2)


def _first_layer(
    run: Run, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, prefill: bool
) -> Tensor | None:
    """Before the first layer: decide heads where the input decides, and say how later layers get its patterns. Returns
    the pattern of all heads where that is at hand and as good as a fused call."""
    decides = run.plan.first_layer_threshold is not None and prefill
    needed = STRATEGIES[run.plan.strategy].needs_first_layer and run.active
    at_once = needed and (decides or run.mapped) and (query.shape[2] == 1 or is_small(query, key))
    if not decides and not at_once:
        run.compute_pattern, run.first_layer_map = partial(_pattern, query, key, mask, scale), None
        return None
    pattern = pattern_of(query, key, KvReads.evenly(query.shape[1], key.shape[1], query.device), mask, scale)
    if decides:
        run.first_layer_heads = _sinks(pattern, mask, run.plan.first_layer_threshold)
    if at_once:
        run.first_layer_map = None, pattern
        return pattern
    if needed:
        run.first_layer_map = run.mapped, take(pattern, as_index(run.mapped, query.device))
    return None


def _pattern(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, heads: tuple[int, ...]) -> Tensor:
    """Attention (batch, head, query, key) of `heads`."""
    groups, device = query.shape[1] // key.shape[1], query.device
    reads = KvReads.of(tuple(h // groups for h in heads), device)
    return pattern_of(take(query, as_index(heads, device)), key, reads, mask, scale)


def _sinks(pattern: Tensor, mask: Tensor | None, threshold: float) -> list[int]:
    """Heads whose sink score reaches the threshold in every sequence of the batch."""
    if mask is None:
        score = pattern[..., 0].mean(-1)
    else:
        index = first_tokens(pattern, mask)[:, None, None, None].expand(-1, *pattern.shape[1:3], 1)
        mass = pattern.gather(-1, index)[..., 0]  # (batch, head, query)
        real = mask.any(-1).expand_as(mass)
        score = (mass * real).sum(-1) / real.sum(-1)
    return torch.nonzero((score >= threshold).all(0)).flatten().tolist()
