"""How much a head writes: the norm of its output relative to the residual stream it is added to.

A sink head whose relative norm is near zero does nothing; one with a large norm adds a bias that matters. Models that
normalize the attention output once more before adding it (Gemma 2 and 3) are measured before that normalization.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class ResidualStreams:
    """Remembers, for every attention module, the hidden states its decoder layer was given, (batch, query, hidden)."""

    def __init__(self, model: PreTrainedModel):
        self._before: dict[nn.Module, Tensor] = {}
        self._handles = []
        for layer in model.modules():
            attentions = [child for child in layer.children() if hasattr(child, "layer_idx")]
            if attentions:
                self._handles.append(layer.register_forward_pre_hook(self._hook(attentions), with_kwargs=True))

    def before(self, attention: nn.Module) -> Tensor | None:
        return self._before.pop(attention, None)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, attentions: list[nn.Module]):
        def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            self._before.update(dict.fromkeys(attentions, hidden))

        return note


def relative_norms(attention: nn.Module, output: Tensor, residual: Tensor | None) -> Tensor | None:
    """|W_O,h a_h| / |x| for every head and query, (batch, head, query) float32.

    `output` (batch, head, query, width): attention output a. `residual` (batch, query, hidden): the stream x. None
    where the architecture has no single output projection that reads the heads side by side.
    """
    heads, width = output.shape[1], output.shape[-1]
    weight = _output_projection(attention, heads * width)
    if weight is None or residual is None:
        return None
    per_head = weight.float().T.reshape(heads, width, -1)
    gram = per_head @ per_head.transpose(1, 2)  # (head, width, width)
    batch, _, queries, _ = output.shape
    flat = output.float().transpose(0, 1).reshape(heads, batch * queries, width)
    norm = (flat @ gram).mul_(flat).sum(-1).clamp_(min=0).sqrt_()  # (head, batch and query)
    norm /= torch.linalg.vector_norm(residual.float(), dim=-1).flatten()
    return norm.reshape(heads, batch, queries).transpose(0, 1)


def _output_projection(attention: nn.Module, inputs: int) -> Tensor | None:
    """Weight (hidden, inputs) of the module's last linear layer if it reads `inputs` values."""
    linear = [child for child in attention.children() if isinstance(child, nn.Linear | Conv1D)]
    if not linear:
        return None
    weight = linear[-1].weight.T if isinstance(linear[-1], Conv1D) else linear[-1].weight
    return weight if weight.shape[1] == inputs else None
