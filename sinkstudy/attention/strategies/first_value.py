"""The head's output is the first token's value: exact for a head whose whole mass is on the first token."""

from torch import Tensor

from sinkstudy.attention.strategies.contract import ReplacedHeads


def first_value(heads: ReplacedHeads) -> Tensor:
    index = heads.first[:, None, None, None].expand(-1, heads.value.shape[1], 1, heads.value.shape[-1])
    return heads.value.gather(2, index)  # (batch, head, 1, width)
