"""Kills at named points of jobs and of the workflow, and what docs/recovery.md promises after them."""

import json
import os
import re
import time
from pathlib import Path

import psutil
import pytest
from study import ROOT, documented, results_of, snakemake, start_snakemake

pytestmark = pytest.mark.slow

# The documented recovery; its last command is the run itself.
*PREPARATION, RUN = documented("recovery.md", "snakemake --unlock")
POINTS = ["before", "while", "written", "renamed"]
# Of many rules and kinds of file. None is made from another, so that one run can lose them all.
FILES = [
    "results/scores/untrained.csv",
    "results/curves/foreign.csv",
    "results/simulation/tiny-8b.h5",
    "results/mechanism/untrained.csv",
    "results/figures/lengths_untrained.svg",
]
EXPLORER, CAPTURE = "results/explorer.html", "results/captures/reference/00001.h5"  # the first is made from the second
ROUNDS = [[*FILES, EXPLORER], [*FILES, EXPLORER], [*FILES, CAPTURE], [*FILES, CAPTURE]]


def killing(folder: Path, kills: dict[str, tuple], *targets: str) -> None:
    """Run the workflow into these kills, and wait until nothing of it is at work any more."""
    here = os.pathsep.join(filter(None, [str(ROOT / "tests/kill_points"), os.environ.get("PYTHONPATH")]))
    environment = {"KILLS": json.dumps(kills), "PYTHONPATH": here}
    # As the kill leaves them: Snakemake would remove outputs of failed jobs.
    told = [*RUN, "--keep-going", "--keep-incomplete", *targets]
    process = start_snakemake(folder, *told, environment=environment)
    assert process.wait() != 0, (folder / "run.txt").read_text()[-3000:]
    while [one for one in psutil.pids() if session_of(one) == process.pid]:
        time.sleep(0.05)


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def recover(folder: Path, *targets: str) -> None:
    for arguments in [*PREPARATION, [*RUN, *targets]]:
        done = snakemake(folder, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]


def temporaries(folder: Path) -> dict[str, Path]:
    """Temporary files by the file that they were to become."""
    found = (folder / "results").rglob(".*.tmp")
    return {re.sub(r"/\.(.+?\.\w+)\..*", r"/\1", path.relative_to(folder).as_posix()): path for path in found}


def missing(folder: Path, finished: Path) -> list[str]:
    """Other outputs of jobs that were killed; of tables as Parquet, the folder is the output."""
    gone = {Path(name) for name in results_of(finished).keys() - results_of(folder).keys()}
    in_folder = (".parquet", "")  # the other is Snakemake's time stamp
    return sorted({f"results/{path.parent if path.suffix in in_folder else path}" for path in gone})


def assert_whole(folder: Path, finished: Path) -> None:
    """What has its name is what the undisturbed run wrote, to the byte."""
    expected = results_of(finished)
    for name, content in results_of(folder).items():
        assert name.endswith(".tmp") or content == expected[name], name


def test_jobs_of_many_rules_killed_at_every_point_of_their_writing(finished, copied):
    """24 kills: four runs that lose six jobs each, every job at another point in every run."""
    for number, files in enumerate(ROUNDS):
        for name in files:
            (copied / name).unlink(missing_ok=True)
        points = {name: POINTS[(number + i) % len(POINTS)] for i, name in enumerate(files)}
        half = {name: (finished / name).stat().st_size // 2 for name in files}
        before = {name: path.name for name, path in temporaries(copied).items()}
        killing(copied, {name: (point, "job", half[name]) for name, point in points.items()}, *files)
        left = temporaries(copied)
        for name, point in points.items():
            assert (copied / name).exists() == (point == "renamed"), (name, point)
            assert (name in left) == (point in ("while", "written")), (name, point)
            if point == "while":
                assert left[name].stat().st_size <= half[name]
            # The run after it has removed what the one before it left.
            assert name not in before or name not in left or left[name].name != before[name]
        assert_whole(copied, finished)
    recover(copied, *FILES, CAPTURE, EXPLORER, *missing(copied, finished))
    assert temporaries(copied) == {}
    assert results_of(copied) == results_of(finished)


def test_findings_killed_while_their_page_is_written(finished, copied):
    pages = ["results/findings.md", "results/findings.html", "results/verdicts.json"]
    for name in pages:
        (copied / name).unlink()
    killing(copied, {pages[1]: ("while", "job", 5000)}, *pages)
    assert [(copied / name).exists() for name in pages] == [True, False, False]
    assert temporaries(copied).keys() == {pages[1]}
    recover(copied, *pages)
    assert temporaries(copied) == {}
    for name in pages:
        assert (copied / name).read_bytes() == (finished / name).read_bytes()


CHAIN = SCORES, HEADS, PLAN = (
    "results/scores/reference.csv",
    "results/heads/reference.csv",
    "results/plans/reference/consistent.json",
)
# One after the other on one study, each beginning without a file of the chain.
OF_THE_WORKFLOW = {
    "the workflow, and its job lives on": (SCORES, {SCORES: ("written", "workflow", 0)}),
    "all, after a rename and before Snakemake notes it": (SCORES, {SCORES: ("renamed", "all", 0)}),
    "the workflow, between two jobs": (HEADS, {"heads.py": ("start", "workflow", 0)}),
    "all, before a rename": (HEADS, {HEADS: ("written", "all", 0)}),
    "all, before a temporary file": (PLAN, {PLAN: ("before", "all", 0)}),
}


def test_the_workflow_killed_at_every_point_of_a_chain_of_jobs(finished, copied):
    for what, (lost, kills) in OF_THE_WORKFLOW.items():
        (copied / lost).unlink(missing_ok=True)
        killing(copied, kills, *CHAIN)
        assert_whole(copied, finished)
        assert (copied / SCORES).exists(), what  # the first job lived on, and no later kill is before its end
        assert lost == SCORES or not (copied / lost).exists(), what
        refused = snakemake(copied, *RUN, *CHAIN) if "lives on" in what else None
        assert refused is None or (refused.returncode and "--unlock" in refused.stderr)
        for arguments in PREPARATION:
            assert snakemake(copied, *arguments).returncode == 0
    recover(copied, *CHAIN, *missing(copied, finished))
    assert temporaries(copied) == {}
    assert results_of(copied) == results_of(finished)
