import os
import platform
import subprocess
import sys

import pandas as pd

from sinkstudy.store.tables import write_table
from sinkstudy.store.temporary import temporary_for


def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_job_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    """Names may hold what a pattern would take for its own signs."""
    here, pid = platform.node(), ended()
    left = f".a[1].csv.{here}.{pid}.tmp"
    kept = [
        f".a1.csv.{here}.{pid}.tmp",  # of another file
        f".a[1].csv.{here}.{os.getppid()}.tmp",  # of a process that runs
        f".a[1].csv.another-{here}.{pid}.tmp",  # of a machine whose processes cannot be seen from here
        f".a[1].csv.{here}.mine.tmp",
        ".a[1].csv",
    ]
    for name in (left, *kept):
        (tmp_path / name).touch()
    write_table(pd.DataFrame({"model": ["m"]}), tmp_path / "a[1].csv")
    assert {file.name for file in tmp_path.iterdir()} == {"a[1].csv", *kept}


def test_two_processes_have_temporaries_of_their_own(tmp_path, monkeypatch):
    first = temporary_for(tmp_path / "a.csv")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert temporary_for(tmp_path / "a.csv") != first
