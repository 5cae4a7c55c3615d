"""The first layer's attention pattern applied to this layer's values: the original study's proposal."""

from torch import Tensor

from sinkstudy.attention.strategies.contract import ReplacedHeads


def reuse(heads: ReplacedHeads) -> Tensor:
    return heads.first_layer_map().to(heads.value.dtype) @ heads.value  # (batch, head, query, width)
