"""What several test files share."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from study import run_clone

from sinkstudy.errors import StudyError

# Two processes share the cores; threads of PyTorch in both would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Snakemake's jobs set their own number of threads, and together have more of them than there are cores. A thread that
# waits for another would keep its core busy meanwhile, so that a job takes up to eight times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The same examples in every run, and no time limit per example: a busy machine is not a failure.
settings.register_profile("sinkstudy", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("sinkstudy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole studies go first, so that no process is left alone with one of them at the end.

    One file begins with the study that several files read, and those go after the files with studies of their own: the
    other process has work for as long as that study takes, and does not wait for it.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    reading = [item.path for item in items if "finished" in getattr(item, "fixturenames", ())]
    items.sort(key=lambda item: (item.path not in slow, item.path not in reading[:1], item.path in reading))


@pytest.fixture(scope="session")
def refuses() -> Callable[..., AbstractContextManager[None]]:
    """`with refuses("a", "b"):` expects a StudyError of one sentence that mentions all of these."""

    @contextmanager
    def expect(*mentions: str) -> Iterator[None]:
        with pytest.raises(StudyError) as caught:
            yield
        message = str(caught.value)
        assert message.endswith("."), message
        assert "\n" not in message, message
        assert not re.search(r"[.!?] [A-Z]", message), message
        for mention in mentions:
            assert mention in message, message

    return expect


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The small study, run to its end once for all processes of a test run: to be read and not to be changed."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            run_clone(folder.with_name("running"))
            folder.with_name("running").rename(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, with its time stamps and its records of what ran, to be changed."""
    return shutil.copytree(finished, tmp_path / "study")
