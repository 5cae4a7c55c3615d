"""The first layer's attention pattern applied to this layer's values: the original study's proposal."""

from torch import Tensor

from sinkstudy.attention.explicit import apply_pattern
from sinkstudy.attention.strategies.contract import ReplacedHeads, Strategy


def from_heads(heads: ReplacedHeads) -> Tensor:
    return apply_pattern(heads.first_layer_map(), heads.value, heads.reads)


REUSE = Strategy(
    from_heads,
    work=lambda n, width, *_: width * n * (n + 1) / 2,
    reads=lambda *_: 0.5,
    projects=("value",),
    needs_first_layer=True,
)
