"""Calls that take turns: each goes on for a stretch and waits while the others go on for theirs, all in one thread.

Other work on a machine comes and goes within seconds, so that passes of seconds that run one after another scatter by a
tenth and more. Where they run side by side, layer by layer, what slows the machine slows all of them alike.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from greenlet import getcurrent, greenlet
from torch import nn
from transformers import PreTrainedModel


def in_turn(calls: Sequence[Callable[[], object]], order: np.random.Generator) -> np.ndarray:
    """Seconds that each call took by itself, (call,). A turn ends where its call pauses, and all that have not returned
    have one before any has another, in an `order` drawn anew."""
    waiting, seconds = dict(enumerate(map(greenlet, calls))), np.zeros(len(calls))
    while waiting:
        for i in order.permutation(list(waiting)):
            start = time.perf_counter()
            waiting[i].switch()
            seconds[i] += time.perf_counter() - start
        waiting = {i: one for i, one in waiting.items() if not one.dead}
    return seconds


def pause(*_: object) -> None:
    """End the turn of the call that runs, if it takes turns. It takes and leaves the arguments of a module's hook."""
    if (others := getcurrent().parent) is not None:
        others.switch()


@contextmanager
def pausing_before(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Calls that run any of the modules pause before it inside the block."""
    hooks = [one.register_forward_pre_hook(pause) for one in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares all weights, so that a pass of one may pause while a pass of the other goes on, whatever
    attention either runs with."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(one): one for one in shared})
