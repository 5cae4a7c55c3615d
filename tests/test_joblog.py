import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from sinkstudy.errors import StudyError
from sinkstudy.joblog import job_log

ROOT = Path(__file__).parents[1]
SENTENCE = "the prompt 'é' is empty; every prompt needs text."


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "job.log"


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [KeyError("lost"), MemoryError("full"), KeyboardInterrupt(), SystemExit(3)])
def test_any_exception_leaves_its_traceback_in_the_log_and_goes_on(log, error):
    with pytest.raises(type(error)) as caught, job_log(log):
        fail(error)
    assert caught.value is error
    text = log.read_text(encoding="utf-8")
    assert text.startswith("Traceback (most recent call last):")
    assert "in fail" in text
    assert type(error).__name__ in text
    assert str(error) in text


def test_the_traceback_holds_the_cause(log):
    def wrap() -> None:
        try:
            fail(OSError("disk gone"))
        except OSError as error:
            raise ValueError("no result") from error

    with pytest.raises(ValueError, match="no result"), job_log(log):
        wrap()
    text = log.read_text(encoding="utf-8")
    assert "OSError: disk gone" in text
    assert "ValueError: no result" in text


def test_a_mistake_of_the_user_is_one_sentence_on_the_terminal_and_a_traceback_in_the_log(log, capsys):
    with pytest.raises(SystemExit) as caught, job_log(log):
        fail(StudyError(SENTENCE))
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", f"error: {SENTENCE}\n")
    text = log.read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "in fail" in text
    assert SENTENCE in text


def test_a_process_that_meets_a_mistake_of_the_user_ends_with_status_1_and_one_line(log):
    program = (
        "import sys; from sinkstudy.joblog import job_log; from sinkstudy.errors import StudyError\n"
        "with job_log(sys.argv[1]):\n"
        "    raise StudyError('the file is empty.')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(log)], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "error: the file is empty.\n")


def test_a_process_that_crashes_ends_with_its_traceback_on_the_terminal_too(log):
    program = (
        "import sys; from sinkstudy.joblog import job_log\nwith job_log(sys.argv[1]):\n    raise KeyError('lost')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(log)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith("KeyError: 'lost'")
    assert log.read_text(encoding="utf-8").rstrip().endswith("KeyError: 'lost'")


def test_what_a_job_says_on_stderr_reaches_the_terminal_and_the_log(log, capsys):
    with job_log(log):
        print("halfway ✓", file=sys.stderr)
        list(tqdm(range(3), desc="progress", file=sys.stderr))
    for text in (capsys.readouterr().err, log.read_text(encoding="utf-8")):
        assert text.startswith("halfway ✓\n")
        assert "progress: 100%" in text


@pytest.mark.parametrize("error", [None, ValueError("x"), StudyError("x.")])
def test_stderr_is_as_before_when_the_job_has_ended(log, error):
    before = sys.stderr
    try:
        with job_log(log):
            assert sys.stderr is not before
            if error is not None:
                raise error
    except (ValueError, SystemExit):
        pass
    assert sys.stderr is before


def test_a_job_that_goes_well_leaves_a_log_of_its_own(log):
    log.write_text("from an earlier run")
    with job_log(log):
        pass
    assert log.read_text() == ""
