"""Side by side timing: alternatives take turns in one process, after a warm-up that is not counted."""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from sinkstudy.stats.speedups import speedups

# A sample shorter than this is dominated by the clock and the scheduler, so several calls make one sample.
_SAMPLE_SECONDS = 0.02
# A shorter call is run once before each of its samples: entering its context has filled the processor's caches. Its
# memory is looked at twice.
_WARM_SECONDS = 0.2
# An alternative that is not compared with the rest is timed once, and again until it has taken so long.
_ASIDE_SECONDS = 3.0


@dataclass(frozen=True)
class Alternative:
    """`call` is timed inside a fresh `context`, whose own time does not count.

    `compared`: whether its time is compared with the others', so that it takes part in every round. `seconds`: what a
    call took when it was last run, NaN where it was not.
    """

    context: Callable[[], AbstractContextManager]
    call: Callable[[], object]
    compared: bool = True
    seconds: float = math.nan


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
    """Seconds per call, (round, alternative), each sample synchronised with the device; NaN where one sat out.

    Every round takes all of them, in an order drawn anew: what one leaves behind (cold caches, memory given back) would
    otherwise always count against the same next one. `calls_per_sample`: the same for all, where calls change what they
    work on; otherwise as many as a sample takes.
    """
    calls, latest = [], []
    for one in alternatives:
        seconds = one.seconds
        if not seconds > _WARM_SECONDS:
            with one.context(), torch.inference_mode():
                seconds = _seconds(one.call, 1, device)  # the warm-up of long calls
                if seconds < _WARM_SECONDS:
                    seconds = _seconds(one.call, 1, device)
        latest.append(seconds)
        calls.append(calls_per_sample or max(1, math.ceil(_SAMPLE_SECONDS / seconds)))
    compared = [i for i, one in enumerate(alternatives) if one.compared]
    samples, order, start = np.empty((0, len(alternatives))), np.random.default_rng(0), time.perf_counter()
    while not rounds.are_over(samples[:, compared], time.perf_counter() - start):
        samples = np.vstack([samples, np.full(len(alternatives), math.nan)])
        for i in order.permutation(len(alternatives)):
            one = alternatives[i]
            if not one.compared and len(samples) > 1 and np.nansum(samples[:, i]) * calls[i] > _ASIDE_SECONDS:
                continue
            with one.context(), torch.inference_mode():
                if latest[i] < _WARM_SECONDS:
                    one.call()
                latest[i] = samples[-1, i] = _seconds(one.call, calls[i], device)
    return samples


def _seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / times


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
