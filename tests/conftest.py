"""What several test files share."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import settings

from sinkstudy.errors import StudyError

# Two processes share the cores; threads of PyTorch in both would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples in every run, and no time limit per example: a busy machine is not a failure.
settings.register_profile("sinkstudy", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("sinkstudy")


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
