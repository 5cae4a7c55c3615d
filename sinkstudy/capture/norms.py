"""How much a head writes: the norm of its output relative to the residual stream it is added to.

A sink head whose relative norm is near zero does nothing; one with a large norm adds a bias that matters. Models that
normalize the attention output once more before adding it (Gemma 2 and 3) are measured before that normalization.
"""

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class OutputNorms:
    """Norms for all passes until `remove`: hooks keep the stream each attention module's output is added to."""

    def __init__(self, model: PreTrainedModel):
        self._before: dict[nn.Module, Tensor] = {}  # (batch, query, hidden)
        self._factors: dict[nn.Module, Tensor | None] = {}
        self._handles = []
        for layer in model.modules():
            attentions = [child for child in layer.children() if hasattr(child, "layer_idx")]
            if attentions:
                self._handles.append(layer.register_forward_pre_hook(self._hook(attentions), with_kwargs=True))

    def of(self, attention: nn.Module, output: Tensor) -> Tensor | None:
        """|W_O,h a_h| / |x| for every head and query, (batch, head, query) float32.

        `output` (batch, query, head, width): attention output a; x is the residual stream. None where the
        architecture has no single output projection that reads the heads side by side.
        """
        batch, queries, heads, width = output.shape
        residual = self._before.pop(attention, None)
        if attention not in self._factors:
            self._factors[attention] = _factor(attention, heads, width)
        factor = self._factors[attention]
        if factor is None or residual is None:
            return None
        flat = output.float().reshape(batch * queries, heads, width).transpose(0, 1)
        norm = torch.linalg.vector_norm(flat @ factor, dim=-1)  # (head, batch and query)
        norm /= torch.linalg.vector_norm(residual.float(), dim=-1).flatten()
        return norm.reshape(heads, batch, queries).transpose(0, 1)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, attentions: list[nn.Module]):
        def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            self._before.update(dict.fromkeys(attentions, hidden))

        return note


def _factor(attention: nn.Module, heads: int, width: int) -> Tensor | None:
    """R^T of W_O,h = QR for every head, (head, width, width or less) float32: |W_O,h a| = |R a|, as Q turns only."""
    weight = _output_projection(attention, heads * width)
    if weight is None:
        return None
    per_head = weight.float().reshape(-1, heads, width).transpose(0, 1)  # (head, hidden, width)
    return torch.linalg.qr(per_head, mode="r").R.mT.contiguous()


def _output_projection(attention: nn.Module, inputs: int) -> Tensor | None:
    """Weight (hidden, inputs) of the module's last linear layer if it reads `inputs` values."""
    linear = [child for child in attention.children() if isinstance(child, nn.Linear | Conv1D)]
    if not linear:
        return None
    with align_module_device(linear[-1]):  # where layers are offloaded, the weight is not in memory yet
        weight = linear[-1].weight.T if isinstance(linear[-1], Conv1D) else linear[-1].weight
    return weight if weight.shape[1] == inputs else None
