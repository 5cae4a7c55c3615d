"""A file has its name when it is whole, whatever ends the process that writes it."""

import os
import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sinkstudy.store import atomic_write, write_file

ROOT = Path(__file__).parents[1]


def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(("content", "expected"), [("é\n", b"\xc3\xa9\n"), (b"\x00\xff", b"\x00\xff")])
def test_a_file_is_written_whole(tmp_path, content, expected):
    write_file(tmp_path / "a.bin", content)
    assert (tmp_path / "a.bin").read_bytes() == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(
    ("moment", "there_after"),
    [
        ("os.kill(os.getpid(), 9); temporary.write_text('new')", "old"),
        ("temporary.write_text('ne'); os.kill(os.getpid(), 9)", "old"),
        ("temporary.write_text('new'); os.fsync = lambda _: os.kill(os.getpid(), 9)", "old"),
        ("temporary.write_text('new'); Path.unlink = lambda *_, **__: os.kill(os.getpid(), 9)", "new"),
    ],
    ids=["before writing", "while writing", "before the rename", "after the rename"],
)
def test_a_process_that_is_killed_leaves_the_old_file_or_the_whole_new_one(tmp_path, old, moment, there_after):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    program = f"""
        import os, sys
        from pathlib import Path
        from sinkstudy.store import atomic_write

        with atomic_write(sys.argv[1]) as temporary:
            {moment}
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], check=False)
    assert killed.returncode == -9
    if there_after == "old":
        assert (path.read_text() if path.exists() else None) == old
    else:
        assert path.read_text() == "new"
    write_file(path, "again")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_killed_jobs_left_of_this_file_is_removed_and_nothing_else(tmp_path):
    """Names may hold what a pattern would take for its own signs."""
    here, pid = platform.node(), ended()
    left = f".a[1].csv.{here}.{pid}.tmp"
    kept = [
        f".a1.csv.{here}.{pid}.tmp",  # of another file
        f".a[1].csv.{here}.{os.getppid()}.tmp",  # of a process that runs
        f".a[1].csv.another-{here}.{pid}.tmp",  # of a machine whose processes cannot be seen from here
        f".a[1].csv.{here}.mine.tmp",
        f".a[1].csv.{here}.{10**30}.tmp",
        ".a[1].csv",
    ]
    for name in (left, *kept):
        (tmp_path / name).touch()
    write_file(tmp_path / "a[1].csv", "x")
    assert {file.name for file in tmp_path.iterdir()} == {"a[1].csv", *kept}


def test_two_processes_write_under_names_of_their_own(tmp_path):
    with atomic_write(tmp_path / "a") as ours:
        program = "import sys; from sinkstudy.store import write_file; write_file(sys.argv[1], 'theirs')"
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True)
        assert (tmp_path / "a").read_text() == "theirs"
        ours.write_text("ours")
    assert (tmp_path / "a").read_text() == "ours"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "a.csv"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert caught.value.filename == str(tmp_path / "a.csv")


def test_an_error_about_another_file_names_that_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.csv"):
        (tmp_path / "input.csv").read_text()
    assert caught.value.filename == str(tmp_path / "input.csv")


WRITES = re.compile(
    r"\.(write_text|write_bytes|to_csv|savefig|save)\(|open\([^)]*[\"'][wax]b?[\"']|h5py\.File\([^)]*\"w\""
)
# Not under results/, or not by the study: the log of a job, a plan that a user saves, the shipped model and schema, and
# (in models/) this machine's cache.
ELSEWHERE = {
    "workflow/joblog.py",
    "attention/plan.py",
    "reference/train.py",
    "scripts/train_reference.py",
    "workflow/settings.py",
}


def test_no_code_writes_a_result_but_by_the_atomic_write():
    for path in [*(ROOT / "sinkstudy").rglob("*.py"), *(ROOT / "workflow/scripts").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        elsewhere = path.parent.name == "models" or "/".join(path.parts[-2:]) in ELSEWHERE
        if not elsewhere and WRITES.search(text):
            assert re.search(r"\b(atomic_write|write_file)\b|figures.style import .*save", text), path
