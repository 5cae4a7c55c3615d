"""Running a loaded model under a plan, through Transformers' attention interface.

Before the first attention module, `PlanState.enter_pass` finds what the prompt decided. The attention of every layer is
`_attention_under_plan`: its heads are partitioned, SDPA attends the kept ones, the plan's strategy fills in the others.
On models whose projections can be pruned, replaced heads are not even projected (`projections`).
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sinkstudy.attention.heads import AttentionInputs, scatter_heads
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.projections import PrunedAttention, prunable_modules
from sinkstudy.attention.state import PlanState
from sinkstudy.attention.untraced import untraced
from sinkstudy.errors import StudyError
from sinkstudy.models.implementation import attention_implementation, uses_attention_interface

_NAME = "sinkstudy_optimized"
DEPTHS = ("projections", "attention")
# Models ask their attention for these things beside attending, and no plan can do them.
_NOT_COVERED = ("softcap", "s_aux", "position_bias")

# An attention module leads to the block it runs in, so that every thread finds it; a module that stands in for a pruned
# one has an entry of its own.
_running: "WeakKeyDictionary[nn.Module, PlanState | PrunedAttention]" = WeakKeyDictionary()


@contextmanager
def optimized(model: PreTrainedModel, plan: Plan, depth: str = "projections") -> Iterator[PlanState | None]:
    """Run `model(...)` and `model.generate(...)` under `plan` inside the block; restore the model exactly after it.

    `depth` "projections" leaves replaced heads out of the projections where model and strategy allow it, and leaves out
    only their attention elsewhere; "attention" does the latter everywhere.

    What a prompt decides (whether it is short enough, which heads are sinks) stays with its KV cache. A cache that is
    filled under a plan is continued under that plan and depth, in this block or a later one; one that was filled before
    may be continued under any one. Whatever its kind, it says so where it is continued elsewhere.
    Layers with a sliding window run under the plan only while the context is shorter than the window.

    Inside the block weights may be changed, moved, cast and trained, but not in place through `weight.data`, which
    PyTorch does not count; exchanging or hooking into a pruned projection, dropout, and copying or pickling the model
    raise StudyError.

    Yields the block's state (None for an empty plan, which changes nothing). Raises StudyError when the plan names a
    layer or head the model does not have, the model does not go through the attention interface, or it already runs
    under a plan.
    """
    _check(model, plan, depth)
    if plan.is_empty:
        yield None
        return
    AttentionInterface.register(_NAME, _attention_under_plan)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    with attention_implementation(model, _NAME, exclusive="runs under a plan"), ExitStack() as block:
        modules = attending_modules(model)
        state = PlanState(model, plan, depth, [module.layer_idx for module in modules])
        found = prunable_modules(model, plan) if depth == "projections" else []
        pruned = [PrunedAttention(module, state) for module in found]
        state.pruned = frozenset(one.layer for one in pruned)
        running = dict.fromkeys(modules, state) | {one.kept_only: one for one in pruned}
        _running.update(running)
        for module in running:
            block.callback(_running.pop, module)
        block.enter_context(modules[0].register_forward_pre_hook(state.enter_pass, with_kwargs=True))
        # Some models (OPT) call a part of their base model directly, so that its own forward never runs.
        for one in {model, model.base_model}:
            block.enter_context(one.register_forward_pre_hook(state.begin_pass))
        for one in pruned:
            one.attention.forward = one
            block.callback(delattr, one.attention, "forward")
        yield state


def attending_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that call the attention interface, in the order of their layers."""
    return [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "is_causal")]


def _check(model: PreTrainedModel, plan: Plan, depth: str) -> None:
    if depth not in DEPTHS:
        raise StudyError(f"optimized: depth {depth!r} is unknown; use one of {', '.join(DEPTHS)}.")
    if not plan.is_empty and not uses_attention_interface(model):
        raise StudyError(
            f"model type {model.config.model_type!r} computes attention by itself; plans need a model that goes "
            "through Transformers' attention interface."
        )
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    attending = {module.layer_idx for module in attending_modules(model)}
    for layer, named in plan.heads.items():
        bad = [h for h in named if not 0 <= h < heads]
        if not 0 <= layer < layers or bad:
            raise StudyError(
                f"plan: layer {layer}, head {bad[0] if bad else named[0]} does not exist; the model has layers 0 to "
                f"{layers - 1} of heads 0 to {heads - 1}."
            )
        if layer not in attending:
            those = ", ".join(map(str, sorted(attending)))
            raise StudyError(f"plan: layer {layer} of the model does not attend; the layers that do are {those}.")


@untraced
def _attention_under_plan(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **features: object,
) -> tuple[Tensor, None]:
    """The registered attention function: output (batch, query, head, width), and no weights."""
    running = _running.get(module)
    _refuse(module, running, features)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    inputs = AttentionInputs(query, key, value, attention_mask, scale)
    if isinstance(running, PrunedAttention):
        return running.attend(inputs), None
    layer = module.layer_idx
    planned = (layer in running.layers or layer == running.now.first_layer) and running.enter_layer(layer)
    call = running.layer_call(layer, inputs, features.get("sliding_window")) if planned else None
    if call is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **features)
    kept = running.calls.kept(call)
    if call.joins and call.partition.readers_are_all:
        return kept[0].attend(call.inputs), None
    output = query.new_empty(query.shape[0], query.shape[2], call.partition.heads, value.shape[-1])
    for group in kept:
        scatter_heads(output, group.queries, group.attend(call.inputs))
    for heads, given in running.calls.replaced(call):
        scatter_heads(output, heads, running.strategy.from_heads(given).transpose(1, 2))
    return output, None


def _refuse(module: nn.Module, running: PlanState | PrunedAttention | None, features: dict[str, object]) -> None:
    name = type(module).__name__
    if running is None:
        raise StudyError(
            f"{name} runs under no plan, but shares its configuration with a model that does; give every model a "
            "configuration of its own."
        )
    if not features.keys().isdisjoint(_NOT_COVERED) and any(features.get(one) is not None for one in _NOT_COVERED):
        raise StudyError(f"{name} caps its scores, biases them or learns sinks, which plans do not cover yet.")
    if features.get("dropout"):
        raise StudyError(f"{name} drops attention at random, which plans do not cover; call model.eval() first.")
