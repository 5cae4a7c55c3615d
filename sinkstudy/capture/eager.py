"""Watching models that compute attention by themselves: their eager weights, taken a layer at a time.

A hook on every attention module takes the weights out of its output, so the model never collects the maps of all
layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from sinkstudy.capture.masses import Watch, from_map
from sinkstudy.errors import StudyError
from sinkstudy.models.layers import attention_modules


@contextmanager
def watch_eagerly(model: PreTrainedModel, watch: Watch, tokens: int) -> Iterator[None]:
    """Report the masses of every attention module that returns its weights inside the block.

    Raises StudyError in a pass where these are of more or fewer than `tokens`.
    """

    def take(module: torch.nn.Module, _: tuple, output: Any) -> Any:
        if not _holds_weights(output):
            return output
        if output[1].shape[2] != tokens:
            raise StudyError(
                f"{type(module).__name__} attends to other keys than the prompt's, and cannot be captured."
            )
        masses = from_map(output[1], keep_map=watch.maps, counted=watch.counted)
        watch.on_layer(layers[module].index, replace(masses, norms=watch.norms.of(module) if watch.norms else None))
        return type(output)((output[0], None, *output[2:]))

    layers = attention_modules(model)
    handles = [module.register_forward_hook(take) for module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _holds_weights(output: Any) -> bool:
    """Whether a module returned (hidden states, attention weights (batch, head, query, key), ...)."""
    if type(output) not in (tuple, list) or len(output) < 2 or not torch.is_tensor(output[1]):
        return False
    return output[1].dim() == 4 and output[1].shape[2] == output[1].shape[3]
