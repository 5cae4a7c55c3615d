"""Which modules of a model may attend, and in which layer."""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel


class Layer(NamedTuple):
    """A layer's true index, and the module whose first input is the residual stream that enters the layer."""

    index: int
    block: nn.Module


def attention_modules(model: PreTrainedModel) -> dict[nn.Module, Layer]:
    """The layer of every module that may attend.

    Attention modules know the index of their layer. In the oldest architectures (GPT-1, GPT-Neo) none does, and there
    it is the number in the name of the block, such as 3 of `h.3`, for everything inside it.
    """
    found = {
        module: Layer(module.layer_idx, block)
        for block in model.modules()
        for module in block.children()
        if isinstance(getattr(module, "layer_idx", None), int)
    }
    if found:
        return found
    for name, block in model.named_modules():
        number = name.rpartition(".")[2]
        if number.isdecimal():  # Outer blocks come first, so a module keeps the number of the outermost.
            found |= {module: Layer(int(number), block) for module in block.modules() if module not in found}
    return found
