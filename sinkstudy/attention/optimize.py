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
from sinkstudy.attention.layout import as_index
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
    prefill = query.shape[-2] == key.shape[-2]
    if run.begin(layer, prefill, key.shape[-2]):
        _first_layer(run, query, key, attention_mask, scale, prefill)
    window = features.get("sliding_window")
    replaced = run.replaced(layer)
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
    layout = run.layout(replaced, query, key)
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    for group in layout.groups(query.shape[2], key.shape[2]):
        output[:, :, group.queries] = group.attend(query, key, value, mask, scale)
    given = run.given(
        layout.replaced,
        (query[:, layout.replaced_index], key, value),
        layout.reads,
        mask,
        scale,
        run.memory.setdefault(layer, {}),
        rest_weight=_rest_weight(run.plan, layer, replaced, query.device),
    )
    output[:, :, layout.replaced_index] = STRATEGIES[run.plan.strategy].from_heads(given).transpose(1, 2)
    return output


def _rest_weight(plan: Plan, layer: int, replaced: list[int], device: torch.device) -> Tensor | None:
    if plan.rest_weight is None:
        return None
    return torch.tensor([[plan.rest_weight[layer][head] for head in replaced]], device=device)


def _first_layer(run: Run, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, prefill: bool) -> None:
    """Before the first layer: decide heads where the input decides, and say how later layers get its patterns."""
    run.compute_pattern, run.first_layer_map = partial(_pattern, query, key, mask, scale), None
    if run.plan.first_layer_threshold is not None and prefill:
        pattern = run.compute_pattern(tuple(range(query.shape[1])))
        run.first_layer_heads = _sinks(pattern, first_tokens(query, mask), mask, run.plan.first_layer_threshold)
        if STRATEGIES[run.plan.strategy].needs_first_layer:
            run.first_layer_map = run.mapped, pattern[:, run.first_layer_heads]


def _pattern(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, heads: tuple[int, ...]) -> Tensor:
    """Attention (batch, head, query, key) of `heads`, the softmax in float32."""
    groups, device = query.shape[1] // key.shape[1], query.device
    key = key[:, as_index(tuple(h // groups for h in heads), device)]
    scores = (query[:, as_index(heads, device)] * scale @ key.transpose(-1, -2)).float()
    if mask is not None:
        # A padding query sees nothing: its softmax is undefined, and its row is never read.
        return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1).nan_to_num()
    n, m = scores.shape[-2:]
    if n > 1:
        future = torch.ones(n, m, dtype=torch.bool, device=device).triu(m - n + 1)
        scores.masked_fill_(future, float("-inf"))
    return torch.softmax(scores, -1)


def _sinks(pattern: Tensor, first: Tensor, mask: Tensor | None, threshold: float) -> list[int]:
    """Heads whose sink score reaches the threshold in every sequence of the batch."""
    index = first[:, None, None, None].expand(-1, *pattern.shape[1:3], 1)
    mass = pattern.gather(-1, index)[..., 0]  # (batch, head, query)
    real = torch.ones_like(mass) if mask is None else mask.any(-1).expand_as(mass)
    score = (mass * real).sum(-1) / real.sum(-1)
    return torch.nonzero((score >= threshold).all(0)).flatten().tolist()
