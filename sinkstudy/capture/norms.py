"""Norms around a layer's attention: of the residual stream that enters the layer, of values, of what heads write.

The first token's residual may be a hundred times as long as the others' (massive activations, Sun et al., 2402.17762),
and its value a tenth as long (value drain, Guo et al., 2410.13835); sinks come and go with both. A sink head whose
output norm, relative to the stream it is added to, is near zero does nothing; one with a large norm adds a bias that
matters. Models that normalize the attention output once more before adding it (Gemma 2 and 3) are measured before that
normalization.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sinkstudy.models.layers import attention_modules

CHANNELS = 3


@dataclass(frozen=True)
class Norms:
    """Of one layer, all float32; None where the architecture does not show it.

    `residual` (batch, query): |x|, the residual stream entering the layer. `channel` (batch, channel) int64: the
    largest channels of the first token's x, and `channel_value` their values. `value` (batch, head, key): |v| of the
    KV head that a head reads. `output` (batch, head, query): |W_O,h a_h| / |x|, a_h being the head's attention output.
    """

    residual: Tensor
    channel: Tensor
    channel_value: Tensor
    value: Tensor | None = None
    output: Tensor | None = None


class NormHooks:
    """Hooks that keep the residual stream entering each attention module's layer, until the module is measured."""

    def __init__(self, model: PreTrainedModel):
        self._entering: dict[nn.Module, Tensor] = {}  # The latest block's input is held, (batch, query, hidden).
        self._factor = cache(_factor)
        self._layers = attention_modules(model)
        blocks = dict.fromkeys(layer.block for layer in self._layers.values())
        self._handles = [block.register_forward_pre_hook(self._note, with_kwargs=True) for block in blocks]

    def of(self, attention: nn.Module, value: Tensor | None = None, output: Tensor | None = None) -> Norms | None:
        """The norms of a layer whose attention was computed, or None where its input is not known.

        `value` (batch, kv_head, key, width) and `output` (batch, query, head, width): of the attention call.
        """
        layer = self._layers.get(attention)
        entering = self._entering.pop(layer.block, None) if layer else None
        if entering is None or entering.dim() != 3:  # Gemma 3n has several streams side by side.
            return None
        residual = torch.linalg.vector_norm(entering, dim=-1, dtype=torch.float32)
        first = entering[:, 0].float()
        channel = first.abs().topk(CHANNELS, dim=-1).indices
        norms = Norms(residual, channel, first.gather(-1, channel))
        if value is None or output is None:
            return norms
        per_kv_head = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float32)
        per_head = per_kv_head.repeat_interleave(output.shape[2] // value.shape[1], dim=1)
        norms = replace(norms, value=per_head)
        factor = self._factor(attention, *output.shape[2:])
        if factor is None:
            return norms
        written = torch.einsum("bqhw,hwr->bhqr", output.float(), factor)
        return replace(norms, output=torch.linalg.vector_norm(written, dim=-1) / residual[:, None])

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _note(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        # Only the latest is held, since blocks of a hybrid that do not attend never take theirs out.
        self._entering = {block: args[0] if args else kwargs.get("hidden_states")}


def _factor(attention: nn.Module, heads: int, width: int) -> Tensor | None:
    """R^T of W_O,h = QR for every head, (head, width, width or less) float32: |W_O,h a| = |R a|, as Q is orthogonal.

    W_O is the weight of the module's last linear layer; None where that does not read the heads side by side.
    """
    linear = [child for child in attention.children() if isinstance(child, nn.Linear | Conv1D)]
    if not linear:
        return None
    # The weight of an offloaded layer is not in memory yet; this reads it.
    with align_module_device(linear[-1]):
        weight = linear[-1].weight.T if isinstance(linear[-1], Conv1D) else linear[-1].weight
    if weight.shape[1] != heads * width:
        return None
    per_head = weight.float().reshape(-1, heads, width).transpose(0, 1)  # (head, hidden, width)
    return torch.linalg.qr(per_head, mode="r").R.mT.contiguous()
