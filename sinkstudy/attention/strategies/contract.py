"""What a strategy is given."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ReplacedHeads:
    """The replaced heads of one layer in one forward pass.

    `value` (batch, head, key, width): each replaced head's values. `first` (batch,): position of each sequence's
    first token (not 0 with left padding). `first_layer_map()`: the first layer's attention of the same head indices
    for the same queries, (batch, head, query, key).
    """

    value: Tensor
    first: Tensor
    first_layer_map: Callable[[], Tensor]
