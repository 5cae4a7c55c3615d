"""Side by side timing: alternatives take turns in one process, after a warm-up that is not counted."""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sinkstudy.evaluation.turns import in_turn, pause, pausing_before
from sinkstudy.stats.speedups import speedups

# A sample shorter than this is dominated by the clock and the scheduler, so several calls make one sample.
_SAMPLE_SECONDS = 0.02
# A shorter call is run once before each of its samples: entering its context has filled the processor's caches. Its
# memory is looked at twice. A longer one pauses before each of its layers.
_WARM_SECONDS = 0.2
# An alternative that is not compared with the rest is timed once, and again until it has taken so long.
_ASIDE_SECONDS = 3.0


@dataclass(frozen=True)
class Alternative:
    """`call` is timed inside a fresh `context`, whose own time does not count; those of other alternatives are entered
    beside it.

    `compared`: whether its time is compared with the others', so that it takes part in every round. `seconds`: what a
    call took when it was last run, NaN where it was not. `layers`: modules that a call runs one after another.
    """

    context: Callable[[], AbstractContextManager]
    call: Callable[[], object]
    compared: bool = True
    seconds: float = math.nan
    layers: Sequence[nn.Module] = ()


@dataclass(frozen=True)
class Rounds:
    """How many rounds of timing: `least`, and then more until every ratio of two compared alternatives is known within
    `precision` (0.02: the 95% interval reaches 2% to either side) or `seconds` have passed.

    Only the width of the intervals ends the rounds, never where they lie, so that stopping favours no alternative.
    """

    least: int
    precision: float = math.inf
    seconds: float = math.inf

    def are_over(self, samples: np.ndarray, passed: float) -> bool:
        """`samples`: seconds of the compared alternatives, (round, alternative). `passed`: seconds since the start."""
        if len(samples) < self.least:
            return False
        nothing_to_compare = samples.shape[1] < 2
        return nothing_to_compare or passed >= self.seconds or not speedups(samples, 0).factor > 1 + self.precision


def interleaved(
    alternatives: Sequence[Alternative], rounds: Rounds, device: torch.device, calls_per_sample: int | None = None
) -> np.ndarray:
    """Seconds per call, (round, alternative); NaN where one sat out.

    Every round takes all of them, call by call in turn, and long calls layer by layer, in orders drawn anew: what one
    leaves behind (cold caches, memory given back) would otherwise always count against the same next one. Layers take
    turns only where they last long enough to read their weights anew: a short one would find those in the processor's
    cache, where the one before it has left them. A GPU works off one alternative after another, since it would idle at
    every pause. `calls_per_sample`: the same for all, where calls change what they work on; otherwise as many as a
    sample takes.
    """
    latest = np.array([one.seconds if one.seconds > _WARM_SECONDS else _warmed_up(one, device) for one in alternatives])
    calls = np.maximum(1, np.ceil(_SAMPLE_SECONDS / latest)).astype(int)
    if calls_per_sample:
        calls[:] = calls_per_sample
    compared = [i for i, one in enumerate(alternatives) if one.compared]
    samples, order, start = np.empty((0, len(alternatives))), np.random.default_rng(0), time.perf_counter()
    while not rounds.are_over(samples[:, compared], time.perf_counter() - start):
        rested = np.nansum(samples, 0) * calls > _ASIDE_SECONDS if len(samples) else np.zeros(len(calls), bool)
        rested[compared] = False
        part = np.flatnonzero(~rested)
        samples = np.vstack([samples, np.full(len(alternatives), math.nan)])
        for together in [part] if device.type == "cpu" else order.permutation(part)[:, None]:
            ways, long = [alternatives[i] for i in together], latest[together] > _WARM_SECONDS
            samples[-1, together] = _side_by_side(ways, calls[together], long, order, device)
        latest[part] = samples[-1, part]
    return samples


def _warmed_up(one: Alternative, device: torch.device) -> float:
    """Seconds of a call that others of its kind have gone before."""
    with one.context(), torch.inference_mode():
        seconds = _seconds(one.call, device)  # One call is all the warm-up that long calls get.
        return _seconds(one.call, device) if seconds < _WARM_SECONDS else seconds


def _side_by_side(
    ways: Sequence[Alternative], calls: np.ndarray, long: np.ndarray, order: np.random.Generator, device: torch.device
) -> np.ndarray:
    """Seconds per call, (alternative,), of so many `calls` of each, which go on in turn."""
    with ExitStack() as stack:
        for one in ways:
            stack.enter_context(one.context())
        with torch.inference_mode():
            for one, pauses in zip(ways, long, strict=True):
                if not pauses:
                    one.call()
                elif device.type == "cpu":
                    stack.enter_context(pausing_before(one.layers))
            work = [partial(_repeat, one.call, times, device) for one, times in zip(ways, calls, strict=True)]
            _synchronize(device)
            return in_turn(work, order) / calls


def _repeat(call: Callable[[], object], times: int, device: torch.device) -> None:
    for _ in range(times):
        call()
        pause()
    _synchronize(device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(one: Alternative, device: torch.device) -> int:
    """Most memory a call holds at once beyond what was held before it."""
    with one.context(), torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
            one.call()
            return torch.cuda.max_memory_allocated(device) - held
        # The profiler drops an event now and then, which can only make the peak smaller.
        start, peak = time.perf_counter(), _peak_on_cpu(one.call)
        return peak if time.perf_counter() - start > _WARM_SECONDS else max(peak, _peak_on_cpu(one.call))


def _peak_on_cpu(call: Callable[[], object]) -> int:
    """The CPU's allocator keeps no peak, but the profiler sees every allocation and release."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes two lines to stderr each time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())])
    return int(max(0, held.max(initial=0)))
