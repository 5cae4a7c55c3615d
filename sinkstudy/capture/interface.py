"""Watching through Transformers' attention interface: the model's attention function is replaced for a while.

The replacement computes the same output and reports each layer's masses. The mask function is registered beside it,
since an attention name without one gets no mask at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from sinkstudy.capture.masses import FUSE_FROM, AttentionCall, Watch, blockwise, can_fuse, explicit, fused
from sinkstudy.errors import StudyError
from sinkstudy.models.implementation import attention_implementation

_NAME = "sinkstudy_capture"


_watch: ContextVar[Watch] = ContextVar("sinkstudy_capture")


@contextmanager
def exchanged_attention(model: PreTrainedModel) -> Iterator[None]:
    """Replace the model's attention for all passes made inside the block; restore the model exactly after it."""
    AttentionInterface.register(_NAME, _watched_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    with attention_implementation(model, _NAME):
        yield


@contextmanager
def watch_interface(watch: Watch) -> Iterator[None]:
    """Report the masses of every call of the exchanged attention inside the block."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


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
    if attention_mask is None and not getattr(module, "is_causal", True):
        raise StudyError(
            f"{type(module).__name__} attends to later tokens, too, where captures need a causal model; encoders such "
            "as BERT are one only where their config.json says is_decoder: true."
        )
    if query.shape[-2] != key.shape[-2]:
        raise StudyError(f"{type(module).__name__} attends to other keys than the prompt's, and cannot be captured.")
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
        counted=watch.counted,
    )
    is_long = query.shape[-2] >= FUSE_FROM
    method = explicit if watch.maps else fused if is_long and can_fuse(call) else blockwise
    output, masses = method(call)
    output = output.transpose(1, 2).contiguous()
    if watch.norms is not None:
        masses = replace(masses, norms=watch.norms.of(module, value, output))
    watch.on_layer(module.layer_idx, masses)
    return output, None
