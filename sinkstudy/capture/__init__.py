"""Watching a model's attention during one ordinary forward pass."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.capture.eager import watch_eagerly
from sinkstudy.capture.interface import exchanged_attention, watch_interface
from sinkstudy.capture.masses import KEY_CLASSES, Masses, Watch
from sinkstudy.capture.norms import NormHooks
from sinkstudy.errors import StudyError
from sinkstudy.models.implementation import uses_attention_interface

__all__ = ["KEY_CLASSES", "Masses", "sink_mass", "watch_forward", "watched"]

OnLayer = Callable[[int, Masses], None]
Forward = Callable[..., None]  # It takes what `watch_forward` takes after the model, but for `norms`.


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


def watch_forward(
    model: PreTrainedModel,
    input_ids: Tensor,
    on_layer: OnLayer,
    *,
    maps: bool = False,
    norms: bool = False,
    counted: Tensor | None = None,
) -> None:
    """Run one forward pass over `input_ids` (batch, query), calling `on_layer(layer, masses)` as layers finish.

    Prompts of different lengths are padded on the right by the caller: causal queries never see what follows
    them, so rows up to each prompt's own length are unaffected. With `maps` the masses hold the whole map; with
    `norms` those of the layer (on architectures that compute attention by themselves only the residual's). `counted`
    (batch, query) is true for queries that are no padding, and asks for what each key receives from later ones.

    Raises StudyError naming the model type when none of its layers shows its attention.
    """
    with watched(model, norms=norms) as forward:
        forward(input_ids, on_layer, maps=maps, counted=counted)


@contextmanager
def watched(model: PreTrainedModel, *, norms: bool = False) -> Iterator[Forward]:
    """`watch_forward` for many passes: preparing the model takes as long as a pass over a few short prompts.

    The first pass shows which layers attend; later ones end when the last of them has.
    """
    known: set[int] = set()

    @torch.inference_mode()
    def forward(input_ids: Tensor, on_layer: OnLayer, *, maps: bool = False, counted: Tensor | None = None) -> None:
        seen: set[int] = set()

        def note(layer: int, masses: Masses) -> None:
            if layer in seen:
                raise _unsupported(model, f"layer {layer} attends twice in one pass")
            seen.add(layer)
            on_layer(layer, masses)
            if seen == known:
                raise _AllSeen

        ids = input_ids.to(model.device)
        watch = Watch(note, hooks, maps, None if counted is None else counted.to(model.device))
        try:
            if exchangeable:
                with watch_interface(watch):
                    model.base_model(input_ids=ids, use_cache=False)
            else:
                with watch_eagerly(model, watch, tokens=ids.shape[1]):
                    model.base_model(input_ids=ids, use_cache=False, output_attentions=True)
        except _AllSeen:
            return
        if not seen:
            raise _unsupported(model, "none of its layers shows attention weights")
        known.update(seen)

    exchangeable = uses_attention_interface(model)
    with exchanged_attention(model), closing(NormHooks(model)) if norms else nullcontext() as hooks:
        yield forward


class _AllSeen(Exception):
    """Ends a forward pass whose remaining work nobody looks at."""


def _unsupported(model: PreTrainedModel, why: str) -> StudyError:
    return StudyError(
        f"model type {model.config.model_type!r} cannot be captured: {why}; use a causal model whose attention goes "
        "through Transformers' attention interface, or returns its weights with output_attentions."
    )
