"""The first layer's attention pattern applied to this layer's values: the original study's proposal."""

from torch import Tensor

from sinkstudy.attention.heads import select_heads
from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy


def from_heads(heads: ReplacedHeads) -> Tensor:
    pattern = heads.first_layer_pattern().to(heads.value.dtype)
    return pattern @ select_heads(heads.value, heads.to_kv.index)


REUSE = Strategy(
    from_heads, work=lambda n, width, *_: width * n * (n + 1) / 2, reads=lambda *_: 0.5, needs_first_layer=True
)
