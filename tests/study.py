"""Running small studies in a folder of their own, and one that is run once for all tests that read it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "models": {
        "reference": {"source": str(ROOT / "models/reference")},
        "untrained": {"source": str(ROOT / "models/reference"), "random_weights": 0},
    },
    "prompts": "prompts.tsv",
    "capture": {"tokens_per_job": 29},  # two prompts to a shard
    "statistics": {"bootstrap": 50, "permutations": 50, "tokens_per_job": 29},  # one shard to a part
    "simulation": {"tiny-8b": {"layers": 4, "heads": 4, "lengths": [5, 10]}},
    "benchmark": {
        "text": str(ROOT / "texts/heldout.txt"),
        "lengths": [24, 48],
        "repeats": 3,
        "seconds_per_cell": 0,
        "answer_tokens": 8,
    },
}
TIMED = re.compile(r"benchmark/|costs|figures/(timing|tradeoff)|findings|verdicts")
PROMPTS = [
    ("hello", "short", "Hello world"),
    ("fox", "long", "The quick brown fox jumps over the lazy dog while a cat looks on from the wall."),
    ("loop", "code", '"for x in [1, 2]:\n\tprint(x)"'),
    ("why", "question", "Why is the sky blue?"),
    ("tide", "long", "The tide came in before noon and took the sand castles with it, one after another."),
]


def write_study(folder: Path, config: dict | None = None, prompts: list[tuple] = PROMPTS) -> Path:
    """A configuration and a prompt table in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(SMALL if config is None else config))
    write_prompts(folder, prompts)
    return folder


def write_prompts(folder: Path, prompts: list[tuple]) -> None:
    rows = ["prompt\tset\ttext", *("\t".join(row) for row in prompts)]
    (folder / "prompts.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def snakemake(
    folder: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run Snakemake in `folder` as a user would; `environment` adds to this process's."""
    command = _command(folder, arguments, snakefile)
    everything = _offline() | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, env=everything, check=False)


def start_snakemake(
    folder: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile", environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start Snakemake in `folder` as the leader of a session, its output to `run.txt` there, and do not wait for it."""
    with (folder / "run.txt").open("a", encoding="utf-8") as output:
        command = _command(folder, arguments, snakefile)
        everything = _offline() | (environment or {})
        streams = {"stdout": output, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=everything, start_new_session=True, **streams)


def _command(folder: Path, arguments: tuple[str, ...], snakefile: Path) -> list[str]:
    start = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--directory", str(folder)]
    return [*start, "--cores", "4", *arguments]


def _offline() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1"}


def planned(folder: Path, *arguments: str, snakefile: Path = ROOT / "Snakefile") -> dict[str, int]:
    """Jobs a run would do now, by rule; empty when there is nothing to do."""
    result = snakemake(folder, "-n", *arguments, snakefile=snakefile)
    assert result.returncode == 0, result.stderr
    text = result.stdout + result.stderr
    table = text.split("Job stats:")[-1] if "Job stats:" in text else ""
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M) if rule not in {"total", "all"}}


CLONE = SMALL | {
    "models": {
        "reference": {"source": "models/reference"},
        "untrained": {"source": "models/reference", "random_weights": 0},
        "foreign": {"source": "foreign"},
    },
    "benchmark": SMALL["benchmark"] | {"text": "texts/heldout.txt", "lengths": [24], "strategies": ["first_value"]},
}


def run_clone(folder: Path) -> None:
    """The small study in a clone of its own, with a third model nobody here trained: run to its end in `folder`."""
    from foreign import save_foreign_model  # Here, so that tests that need no study do not wait for PyTorch.

    copy_code(folder)
    save_foreign_model(folder / "foreign")
    done = snakemake(write_study(folder, CLONE), snakefile=folder / "Snakefile")
    assert done.returncode == 0, done.stderr[-3000:]


def results_of(folder: Path) -> dict[str, bytes]:
    """Every result of a study but those that hold times, which are measured anew by every run."""
    root = folder / "results"
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("[!.]*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not TIMED.match(name)}


def documented(page: str, beginning: str) -> list[list[str]]:
    """The arguments of each `snakemake` command in the line of docs/`page` that begins so."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (line,) = re.findall(rf"(?:^    |`)({re.escape(beginning)}[^`\n]*)", text, re.M)
    return [shlex.split(command)[1:] for command in line.split(" && ")]


def copy_code(folder: Path) -> Path:
    """The repository's tracked and new files in `folder`, for tests that edit code; returns its Snakefile."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder / "Snakefile"
