"""Watching a model's attention during one ordinary forward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.capture.eager import watch_eagerly
from sinkstudy.capture.interface import watch_interface
from sinkstudy.capture.masses import KEY_CLASSES, Masses
from sinkstudy.errors import StudyError

__all__ = ["KEY_CLASSES", "Masses", "sink_mass", "watch_forward"]

OnLayer = Callable[[int, Masses], None]


def sink_mass(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Attention mass on the first token, (layer, head, query) float32, exact for the whole prompt.

    `input_ids` (query,) or (1, query) int64. One forward pass; no (query, key) map is kept. By the prefix property
    of causal attention, the sink score at length k is the mean over the first k queries.

    Raises StudyError when the architecture cannot be watched.
    """
    ids = input_ids if input_ids.dim() == 2 else input_ids[None]
    if ids.dim() != 2 or len(ids) != 1:
        raise StudyError(f"sink_mass takes the tokens of one prompt, not a tensor of shape {tuple(input_ids.shape)}.")
    layers: dict[int, Tensor] = {}
    watch_forward(model, ids, lambda layer, masses: layers.update({layer: masses.keys[0, ..., 0]}))
    return torch.stack([layers[layer] for layer in sorted(layers)])


@torch.inference_mode()
def watch_forward(
    model: PreTrainedModel, input_ids: Tensor, on_layer: OnLayer, *, maps: bool = False, norms: bool = False
) -> None:
    """Run one forward pass over `input_ids` (batch, query), calling `on_layer(layer, masses)` as layers finish.

    Prompts of different lengths are padded on the right by the caller: causal queries never see what follows
    them, so rows up to each prompt's own length are unaffected. With `maps` the masses hold the whole map, with
    `norms` the relative output norms (not on architectures that compute attention by themselves).

    Raises StudyError naming the model type when none of its layers shows its attention.
    """
    seen: set[int] = set()

    def note(layer: int, masses: Masses) -> None:
        if layer in seen:
            raise _unsupported(model, f"layer {layer} attends twice in one pass")
        seen.add(layer)
        on_layer(layer, masses)

    ids = input_ids.to(model.device)
    # Transformers' own test of whether a model's attention can be exchanged for another.
    if model._can_set_attn_implementation():
        with watch_interface(model, note, maps=maps, norms=norms):
            model.base_model(input_ids=ids, use_cache=False)
    else:
        with watch_eagerly(model, note, maps=maps):
            model.base_model(input_ids=ids, use_cache=False, output_attentions=True)
    if not seen:
        raise _unsupported(model, "none of its layers shows attention weights")


def _unsupported(model: PreTrainedModel, why: str) -> StudyError:
    return StudyError(
        f"model type {model.config.model_type!r} cannot be captured: {why}; use a causal model whose attention goes "
        "through Transformers' attention interface, or returns its weights with output_attentions."
    )
