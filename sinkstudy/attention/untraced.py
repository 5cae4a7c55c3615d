"""Functions that `torch.compile` leaves out of its graphs."""

from collections.abc import Callable
from functools import wraps

import torch


def untraced(function: Callable) -> Callable:
    """As `torch.compiler.disable`, whose own work costs microseconds in every call, where nothing is compiled, too."""
    disabled = torch.compiler.disable(function)

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        return disabled(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

    return call
