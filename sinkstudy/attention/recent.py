"""A cache of the first tokens and the latest ones, in which a decoded token takes the place of the oldest."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class RecentTokens:
    """`held`: keys and values (batch, kv_head, token, width). Attention does not ask in which order they stand, so that
    after the first tokens they form a ring once some have been forgotten, and no token has to be moved for the next."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        # The ring begins after this many first tokens. It is 0 while no token has been forgotten and there is no ring.
        self._first = 0
        self._oldest, self._oldest_is_free = 0, False

    @property
    def ordered(self) -> list[Tensor]:
        """Keys and values in the order of their tokens."""
        first, oldest, begin = self._first, self._oldest, self._oldest + self._oldest_is_free
        if begin == first:
            return self.held
        return [torch.cat([t[:, :, :first], t[:, :, begin:], t[:, :, first:oldest]], 2) for t in self.held]

    def append(self, *added: Tensor) -> None:
        """Add keys and values of the next tokens."""
        if not self.held:
            self._hold([states.clone(memory_format=torch.contiguous_format) for states in added])
        elif self._oldest_is_free and all(map(_may_take, self.held, added)):
            for held, states in zip(self.held, added, strict=True):
                held.narrow(2, self._oldest, 1).copy_(states)
            self._oldest_is_free = False
            self._oldest = self._oldest + 1 if self._oldest + 1 < self.held[0].shape[2] else self._first
        else:
            self._hold([torch.cat(pair, 2) for pair in zip(self.ordered, added, strict=True)])

    def forget(self, first: int, recent: int, moved: Sequence[Tensor] | None = None) -> None:
        """Keep the `first` tokens and the `recent` last. `moved`: keys and values of the first ones, where those do not
        stand in front, as padding does."""
        tokens = self.held[0].shape[2] - self._oldest_is_free
        if tokens <= first + recent:
            return
        if self._first == first and tokens == first + recent + 1:
            self._oldest_is_free = True
            return
        states = self.ordered
        front = [t[:, :, :first] for t in states] if moved is None else moved
        latest = [t[:, :, tokens - recent :] for t in states]
        self._hold([torch.cat(pair, 2) for pair in zip(front, latest, strict=True)])
        self._first = self._oldest = first

    def change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values, batch first, each by what `change` makes of them."""
        self.held = [change(states) for states in self.held]

    def _hold(self, states: list[Tensor]) -> None:
        self.held, self._oldest, self._oldest_is_free = states, self._first, False


def _may_take(held: Tensor, added: Tensor) -> bool:
    """Whether one token may be written into `held`: not where gradients may need what is in it, where PyTorch forbids
    it, or where it would be made to fit."""
    batch, heads, _, width = held.shape
    alike = added.dtype == held.dtype and added.shape == (batch, heads, 1, width)
    return alike and not torch.is_grad_enabled() and held.is_inference() <= torch.is_inference_mode_enabled()
