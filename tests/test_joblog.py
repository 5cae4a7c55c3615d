import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

from sinkstudy.errors import DamagedFileError, StudyError
from sinkstudy.workflow.joblog import QUIET, job_log

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
        "import sys\nfrom sinkstudy.workflow.joblog import job_log\n"
        "from sinkstudy.errors import DamagedFileError, StudyError\n"
        "with job_log(sys.argv[1]):\n"
        "    raise StudyError('the file is empty.')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(log)], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "error: the file is empty.\n")


def test_a_process_that_crashes_ends_with_its_traceback_on_the_terminal_too(log):
    program = (
        "import sys\nfrom sinkstudy.workflow.joblog import job_log\n"
        "with job_log(sys.argv[1]):\n    raise KeyError('lost')\n"
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_surroundings_do_to_a_file_is_one_sentence_that_names_it(log, capsys, number):
    with pytest.raises(SystemExit) as caught, job_log(log):
        fail(OSError(number, os.strerror(number), "results/table.csv"))
    assert caught.value.code == 1
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: results/table.csv: ")
    assert sentence.count("\n") == 1
    assert "in fail" in log.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "logs").touch()
    with pytest.raises(SystemExit), job_log(tmp_path / "logs/job.log"):
        pytest.fail("the job must not start")
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/logs/job.log: Not a directory;")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_neither_ends_a_job_nor_hides_what_ended_it(capsys):
    with job_log("/dev/full"):
        print("still here", file=sys.stderr, flush=True)
    with pytest.raises(SystemExit), job_log("/dev/full"):
        fail(StudyError(SENTENCE))
    assert capsys.readouterr().err == f"still here\nerror: {SENTENCE}\n"


def test_a_damaged_result_is_named_with_the_line_that_mends_it_and_left_where_it_is(log, capsys, tmp_path):
    result = tmp_path / "00000.h5"
    result.write_text("damaged")
    error = DamagedFileError(result, "is cut short")
    with pytest.raises(SystemExit), job_log(log):
        fail(error)
    assert capsys.readouterr().err == f"error: {error}\n"
    assert [path.name for path in tmp_path.iterdir() if path != log] == ["00000.h5"]
    assert result.read_text() == "damaged"


def test_a_full_disk_is_told_from_behind_the_error_of_who_wrote_to_it(log, capsys):
    def write() -> None:
        try:
            fail(OSError(errno.ENOSPC, "full", "results/simulation/a.h5"))
        except OSError:
            fail(RuntimeError("cannot close the file"))

    with pytest.raises(SystemExit), job_log(log):
        write()
    assert capsys.readouterr().err.startswith("error: results/simulation/a.h5: No space left on device; ")


def test_warnings_and_errors_that_nobody_can_catch_are_in_the_log_alone(log, capsys):
    class Broken:
        def __del__(self) -> None:
            raise OSError("cannot be let go")

    hooks = sys.unraisablehook, warnings.showwarning
    with warnings.catch_warnings(), job_log(log):
        warnings.simplefilter("always")
        warnings.warn("mind the gap", stacklevel=1)
        del (broken := [Broken()])[0]
    assert capsys.readouterr() == ("", "")
    assert broken == []
    text = log.read_text(encoding="utf-8")
    assert "UserWarning: mind the gap" in text
    assert "cannot be let go" in text
    assert hooks == (sys.unraisablehook, warnings.showwarning)


def test_libraries_write_nothing_on_the_terminal_while_memory_is_measured():
    """PyTorch's allocator and profiler, in an environment such as the workflow gives to its jobs."""
    program = (
        "import torch\nfrom torch.profiler import ProfilerActivity, profile\na = torch.ones(1000)\n"
        "with profile(activities=[ProfilerActivity.CPU], profile_memory=True):\n    del a\n    b = torch.ones(10)\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
