"""Doing the same thing in several threads at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_threads(count: int, repeats: int, work: Callable[[int], Result]) -> list[list[Result]]:
    """What `work(i)` gives each of `repeats` times, for every thread i of `count`; what it raises is raised here."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda i: [work(i) for _ in range(repeats)], range(count)))
