"""Watching a model's attention during one ordinary forward pass.

The model's attention function is replaced, for the length of a `with` block, by one that computes the same output
and hands each layer's masses to a callback. Works on every architecture that goes through Transformers'
`AttentionInterface`; the mask function is registered beside it, since an attention name without one gets no mask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from sinkstudy.errors import StudyError
from sinkstudy.masses import AttentionCall, Masses, blockwise, can_fuse, explicit, fused

OnLayer = Callable[[int, Masses], None]
_NAME = "sinkstudy_capture"


@dataclass(frozen=True)
class _Watch:
    on_layer: OnLayer
    maps: bool


_watch: ContextVar[_Watch] = ContextVar("sinkstudy_capture")


def sink_mass(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Attention mass on the first token, (layer, head, query) float32, exact for the whole prompt.

    `input_ids` (query,) or (1, query) int64. One forward pass; no (query, key) map is kept. By the prefix property
    of causal attention, the sink score at length k is the mean over the first k queries.

    Raises StudyError when the architecture cannot be watched, or its attention is not finite or does not sum.
    """
    ids = input_ids if input_ids.dim() == 2 else input_ids[None]
    if ids.dim() != 2 or len(ids) != 1:
        raise StudyError(f"sink_mass takes the tokens of one prompt, not a tensor of shape {tuple(input_ids.shape)}.")
    layers: dict[int, Tensor] = {}
    watch_forward(model, ids, lambda layer, masses: layers.update({layer: masses.keys[0, ..., 0]}))
    return torch.stack([layers[layer] for layer in sorted(layers)])


@torch.inference_mode()
def watch_forward(model: PreTrainedModel, input_ids: Tensor, on_layer: OnLayer, *, maps: bool = False) -> None:
    """Run one forward pass over `input_ids` (batch, query), calling `on_layer(layer, masses)` as layers finish.

    Prompts of different lengths are padded on the right by the caller: causal queries never see what follows
    them, so rows up to each prompt's own length are unaffected. With `maps` the masses hold the whole map.
    """
    seen: list[int] = []

    def note(layer: int, masses: Masses) -> None:
        seen.append(layer)
        on_layer(layer, masses)

    with _watching(model, _Watch(note, maps)):
        model.base_model(input_ids=input_ids.to(model.device), use_cache=False)
    if not seen:
        raise _unsupported(model, "none of its layers called it")
    if len(set(seen)) != len(seen):
        raise _unsupported(model, "a layer index came twice")


@contextmanager
def _watching(model: PreTrainedModel, watch: _Watch) -> Iterator[None]:
    if not model._can_set_attn_implementation():
        raise _unsupported(model, "its modules compute attention by themselves")
    AttentionInterface.register(_NAME, _watched_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)
        model.set_attn_implementation(before)


def _watched_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **features: object,
) -> tuple[Tensor, None]:
    """The registered attention function: output (batch, query, head, width), and no weights."""
    watch = _watch.get()
    if features.get("position_bias") is not None:
        raise StudyError(f"{type(module).__name__} adds a position bias per layer, which captures do not cover yet.")
    window = features.get("sliding_window")
    if attention_mask is None and window is not None and query.shape[-2] > window:
        raise StudyError(
            f"layer {module.layer_idx} has a sliding window of {window} tokens but was given no mask; its attention "
            "would be computed over keys it cannot see."
        )
    call = AttentionCall(
        query=query,
        key=key,
        value=value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=attention_mask,
        softcap=features.get("softcap"),
        learned_sinks=features.get("s_aux"),
    )
    method = explicit if watch.maps else fused if can_fuse(call) else blockwise
    output, masses = method(call)
    watch.on_layer(module.layer_idx, masses)
    return output.transpose(1, 2).contiguous(), None


def _unsupported(model: PreTrainedModel, why: str) -> StudyError:
    return StudyError(
        f"model type {model.config.model_type!r} cannot be captured through Transformers' attention interface ({why}); "
        "use a model type that supports setting its attention implementation."
    )
