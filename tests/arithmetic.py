"""How far rounding may move a result: float64 is the truth, the plainest computation in the same dtype the yardstick.

Processors differ in the order and width of their sums, and with them every result differs in its last bits. No
allowance here comes from what one machine gave.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

WIDTH = 32  # products in the longest common sum of a tiny model: its hidden size


@dataclass(frozen=True)
class Truth:
    """Numbers in float64, and how far any computation of them in a narrower dtype may be off."""

    value: Tensor
    allowed: float

    def __getitem__(self, place: object) -> "Truth":
        return Truth(self.value[place], self.allowed)

    def map(self, pick: Callable[[Tensor], Tensor]) -> "Truth":
        """Of numbers picked out of the truth, or averaged over it: neither makes an error larger."""
        return Truth(pick(self.value), self.allowed)


@torch.no_grad()
def truth_of(compute: Callable[..., Tensor], model: PreTrainedModel, *arguments: object, terms: int = WIDTH) -> Truth:
    """What `compute(model, *arguments)` gives in float64, and the error allowed to the model's own dtype.

    `compute` must be the plainest way there: Transformers' eager attention, or one written to be read.
    """
    plain = compute(model, *arguments)
    with in_float64(model) as exact:
        value = compute(exact, *arguments)
    return Truth(value, allowed_error(plain, value, terms, model.dtype))


def allowed_error(plain: Tensor, exact: Tensor, terms: float, dtype: torch.dtype = torch.float32) -> float:
    """Twice the largest error of the plain computation, and the roundings of one sum of `terms` products.

    Two computations of one thing in one dtype make errors of one size in different places, so that the larger of their
    maxima is seldom twice the other. It may be where there are few numbers, whose plain errors can all happen to be
    small. A sum of k products is off by at most k u times the sum of their magnitudes, u half the dtype's epsilon
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); the largest result stands for the latter.
    """
    return 2 * largest_error(plain, exact) + roundings(terms, dtype) * exact.abs().max().item()


def roundings(count: float, dtype: torch.dtype = torch.float32) -> float:
    """The relative error of so many operations, each of which rounds to the nearest number of `dtype`."""
    return count * torch.finfo(dtype).eps / 2


def largest_error(found: Tensor, exact: Tensor) -> float:
    """NaN where a number is none."""
    assert found.shape == exact.shape
    return (found.double() - exact).abs().max().item()


def is_within(found: Tensor, truth: Truth) -> bool:
    """Whether every number is as near to the truth as rounding allows."""
    return largest_error(found, truth.value) <= truth.allowed


def assert_within(found: Tensor, truth: Truth) -> None:
    error = largest_error(found, truth.value)
    assert error <= truth.allowed, f"off by {error:.3g}, where rounding explains {truth.allowed:.3g}"


@contextmanager
def in_float64(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A copy of `model` that computes everything in float64 inside the block.

    Models take norms and softmax in float32 whatever their dtype; here these are float64 too. The angles of rotary
    embeddings stay the float32 that they are in the model: they are an input of attention in both computations.
    """
    exact = deepcopy(model).double()
    if exact._can_set_experts_implementation():
        exact.set_experts_implementation("eager")  # the grouped product has no float64 kernel
    for module in exact.modules():
        if hasattr(module, "inv_freq"):
            module.forward = _without_modes(module.forward)
    with _Float64():
        yield exact


def _without_modes(forward: Callable) -> Callable:
    def run(*arguments: object, **named: object) -> object:
        with torch._C.DisableTorchFunction():
            return forward(*arguments, **named)

    return run


class _Float64(TorchFunctionMode):
    """Whoever asks for float32 gets float64."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        function = torch.Tensor.double if function is torch.Tensor.float else function
        arguments = [_widened(argument) for argument in arguments]
        return function(*arguments, **{name: _widened(value) for name, value in (named or {}).items()})


def _widened(argument: object) -> object:
    return torch.float64 if argument is torch.float32 else argument
