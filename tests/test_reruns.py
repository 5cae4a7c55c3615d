"""The rerun contract: every row of docs/reruns.md by dry run and by real run."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hub_cache import cache_model
from study import PROMPTS, ROOT, SMALL, copy_code, planned, snakemake, write_prompts, write_study

from sinkstudy.store import read_provenance

TABLE = re.compile(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.M)
GRID = SMALL["benchmark"] | {"lengths": [24], "strategies": ["first_value"], "answer_tokens": 2}
ONE_MODEL = SMALL | {"models": {"reference": SMALL["models"]["reference"]}, "benchmark": GRID}
RELATIVE = {
    "models": {"reference": {"source": "models/reference"}},
    "benchmark": GRID | {"text": Path(GRID["text"]).relative_to(ROOT).as_posix()},
}
COMMITS = ["0" * 40, "1" * 40]


@dataclass(frozen=True)
class Job:
    rule: str
    outputs: frozenset[str]
    inputs: frozenset[str]
    costs: str  # its benchmark file, which Snakemake's summary leaves out and the cost table reads


class Lab:
    """A study that has run to its end, from a copy of the code that may be edited."""

    def __init__(self, folder: Path):
        self.snakefile = copy_code(folder / "code")
        self.code = self.snakefile.parent
        self.config, self.prompts, self.cores = dict(ONE_MODEL), list(PROMPTS), "4"
        self.folder = write_study(folder / "study", self.config, self.prompts)

    @classmethod
    def found(cls, folder: Path) -> "Lab":
        """The study that lies in `folder`, unedited."""
        lab = cls.__new__(cls)
        lab.code, lab.folder, lab.snakefile = folder / "code", folder / "study", folder / "code/Snakefile"
        lab.config = yaml.safe_load((lab.folder / "config.yaml").read_text())
        lab.prompts, lab.cores = list(PROMPTS), "4"
        return lab

    def set(self, **sections: dict) -> None:
        self.config |= sections
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def set_prompts(self, prompts: list[tuple]) -> None:
        self.prompts = prompts
        write_prompts(self.folder, prompts)

    def append(self, file: str, line: str) -> None:
        with (self.code / file).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")

    def run(self, *targets: str) -> None:
        result = snakemake(self.folder, "--cores", self.cores, *targets, snakefile=self.snakefile)
        assert result.returncode == 0, result.stderr[-3000:]

    def planned(self, *targets: str) -> dict[str, int]:
        return planned(self.folder, "--cores", self.cores, *targets, snakefile=self.snakefile)

    def jobs(self, *targets: str) -> list[Job]:
        """All jobs of the study, or behind the targets, whether they have to run or not."""
        result = snakemake(self.folder, "--detailed-summary", *targets, snakefile=self.snakefile)
        assert result.returncode == 0, result.stderr
        rows = [line.split("\t") for line in result.stdout.splitlines() if line.count("\t") == 7]
        outputs: dict[tuple[str, str], list] = {}
        for row in (dict(zip(rows[0], values, strict=True)) for values in rows[1:]):
            outputs.setdefault((row["rule"], row["log-file(s)"]), []).append(row)
        return [
            Job(
                rule,
                frozenset(row["output_file"] for row in made),
                frozenset(made[0]["input-file(s)"].split(",")),
                "results/costs/" + log.removeprefix("logs/").replace(".log", ".tsv"),
            )
            for (rule, log), made in outputs.items()
            if rule != "all"
        ]

    def times(self) -> dict[str, int]:
        files = (path for path in (self.folder / "results").rglob("*") if path.is_file() and path.suffix != ".tsv")
        return {path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns for path in files}

    def pretend_to_run(self) -> None:
        """Make Snakemake believe that everything has run just now: empty results, true records."""
        for job in self.jobs():
            for file in (*job.outputs, job.costs):
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / file).touch()
        result = snakemake(self.folder, "--touch", snakefile=self.snakefile)
        assert result.returncode == 0, result.stderr[-3000:]
        for job in self.jobs():
            (self.folder / job.costs).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / job.costs).touch()  # --touch has removed it
            os.utime(self.folder / job.costs, (0, 0))


def following(jobs: list[Job], first: Iterable[Job]) -> set[Job]:
    """`first`, and every job that takes a file of one of them, and so on."""
    reached: set[Job] = set()
    new = set(first)
    while new:
        reached |= new
        made = frozenset().union(*(job.outputs | {job.costs} for job in reached))
        new = {job for job in jobs if job.inputs & made} - reached
    return reached


@pytest.fixture(scope="module")
def pretended(tmp_path_factory) -> Callable[[bool], Lab]:
    """A study that believes to have run, without or with a model from the Hub, put back to how it was at each call."""
    kept: dict[bool, tuple[Path, Path]] = {}

    def make(with_hub_model: bool) -> Lab:
        if with_hub_model not in kept:
            lab = Lab(tmp_path_factory.mktemp("pretended") / "lab")
            if with_hub_model:
                lab.set(models=hub(COMMITS[0]))
                lab.run("results/models/hub.json")  # for real: --touch makes no record of it
            lab.pretend_to_run()
            assert lab.planned() == {}
            kept[with_hub_model] = lab.code.parent, shutil.copytree(lab.code.parent, lab.code.parent.with_name("kept"))
        folder, backup = kept[with_hub_model]
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)
        return Lab.found(folder)

    return make


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch) -> None:
    """Two commits of one model in a cache of the Hub."""
    for commit in COMMITS:
        cache_model(tmp_path / "hub", "lab/tiny", commit, ROOT / "models/reference")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def drawing_rules() -> set[str]:
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = re.split("^rule ", text, flags=re.M)
    scripts = (re.match(r'(\w+):.*?"\.\./scripts/(\w+)\.py"', rule, re.S) for rule in rules)
    return {found[1] for found in scripts if found and found[2].startswith("fig_")}


def edit_text(lab: Lab) -> None:
    lab.set_prompts([(p, s, t + " Really?" if p == "why" else t) for p, s, t in lab.prompts])


def edit_caption(lab: Lab) -> None:
    lab.append("workflow/report/heatmap.rst", "Another sentence.")


def edit_comments(lab: Lab) -> None:
    for file in ("capture/masses.py", "stats/correlation.py", "figures/style.py", "prompts.py"):
        path = lab.code / "sinkstudy" / file
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace('"""', '"""Edited. ', 1) + "\n# a comment\n", encoding="utf-8")


def edit_error_sentence(lab: Lab) -> None:
    """In code that every stage reaches."""
    path = lab.code / "sinkstudy/prompts.py"
    before = path.read_text(encoding="utf-8")
    after = before.replace("appears twice; ids must be unique", "is there twice; make ids unique")
    assert after != before
    path.write_text(after, encoding="utf-8")


def hub(commit: str) -> dict:
    return ONE_MODEL["models"] | {"hub": {"source": "lab/tiny", "revision": commit}}


@dataclass(frozen=True)
class Row:
    change: Callable[[Lab], None]
    first: dict[str, str]  # rules that start again, with a pattern for their output files


def captures(shards: str) -> dict[str, str]:
    return {"capture": rf"/captures/\w+/{shards}\.h5"}


OF_HUB = {"fetch_model": "/hub"}
OF_THRESHOLD = ["scores", "simulation", "explorer", "lengths_figures", "statistics_figures"]
ROWS = {
    # Five prompts, two per shard: "why" is in the second shard, and there is room in the third.
    "prompt text edited": Row(edit_text, captures("00001")),
    "prompt appended": Row(lambda lab: lab.set_prompts([*lab.prompts, ("more", "short", "One.")]), captures("00002")),
    "prompt removed": Row(
        lambda lab: lab.set_prompts([row for row in lab.prompts if row[0] != "why"]), captures("0000[12]")
    ),
    "sink threshold changed": Row(lambda lab: lab.set(sinks={"threshold": 0.8}), dict.fromkeys(OF_THRESHOLD, "")),
    "bootstrap seed changed": Row(
        lambda lab: lab.set(statistics=ONE_MODEL["statistics"] | {"seed": 5}),
        {"heads": "", "heldout": "", "simulation": "", "statistics": ""},
    ),
    "figure style changed": Row(
        lambda lab: lab.append("sinkstudy/figures/style.py", "EDITED = 1"), dict.fromkeys(drawing_rules(), "")
    ),
    "caption edited": Row(edit_caption, {}),
    "benchmark grid changed": Row(
        lambda lab: lab.set(benchmark=GRID | {"lengths": [32]}), {"benchmark": "", "quality": ""}
    ),
    "`--cores` changed": Row(lambda lab: setattr(lab, "cores", "2"), {}),
    "comment or docstring edited": Row(edit_comments, {}),
    "error sentence edited": Row(edit_error_sentence, {}),
    "statistics code edited": Row(
        lambda lab: lab.append("sinkstudy/stats/correlation.py", "EDITED = 1"),
        {"heldout": "", "simulation": "", "statistics": ""},
    ),
    "capture code edited": Row(lambda lab: lab.append("sinkstudy/capture/masses.py", "EDITED = 1"), {"capture": ""}),
    "model added": Row(lambda lab: lab.set(models=hub(COMMITS[0])), OF_HUB),
    "model revision changed": Row(lambda lab: lab.set(models=hub(COMMITS[1])), OF_HUB),
    "model removed": Row(
        lambda lab: lab.set(models=ONE_MODEL["models"]), {"comparison": "", "costs": "", "explorer": "", "findings": ""}
    ),
}


NEEDS_HUB_MODEL = {"model revision changed", "model removed"}


def documented() -> dict[str, str]:
    rows = TABLE.findall((ROOT / "docs/reruns.md").read_text(encoding="utf-8"))[2:]
    return {re.sub(r" \(.*\)", "", change): first for change, first in rows}


def test_the_documented_table_is_the_tested_one():
    assert {*RUN_FOR_REAL, *TARGETS, "model added", "model revision changed", "model removed"} == ROWS.keys()
    assert documented().keys() == ROWS.keys()
    for name, first in documented().items():
        rules = ROWS[name].first.keys()
        if "fig_*" in first:
            assert rules == drawing_rules()
        else:
            assert rules == set(re.findall(r"`(\w+)`", first)), name
        assert ("nothing" in first) == (not rules), name


def started_again(name: str, jobs: list[Job]) -> set[Job]:
    """The jobs that a row starts again, and all that follow from their files."""
    first = first_of(name, jobs)
    assert {job.rule for job in first} == ROWS[name].first.keys()
    return following(jobs, first)


def first_of(name: str, jobs: list[Job]) -> list[Job]:
    return [
        job
        for job in jobs
        for rule, pattern in ROWS[name].first.items()
        if job.rule == rule and any(re.search(pattern, output) for output in job.outputs)
    ]


# Each of the others writes most of the study anew, which takes minutes; they have smaller studies below.
RUN_FOR_REAL = [
    "prompt text edited",
    "figure style changed",
    "caption edited",
    "`--cores` changed",
    "comment or docstring edited",
    "error sentence edited",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_by_dry_run(pretended, name):
    # The summary leaves out most of jobs whose files are not there: those of a new model come from a study with it.
    jobs = pretended(True).jobs() if name == "model added" else None
    lab = pretended(name in NEEDS_HUB_MODEL)
    ROWS[name].change(lab)
    expected = started_again(name, jobs or lab.jobs())
    assert lab.planned() == Counter(job.rule for job in expected)


@pytest.mark.slow
def test_by_real_run(tmp_path):
    """One row after the other on one study: files that are written anew, and files that are not touched."""
    lab = Lab(tmp_path)
    lab.run()
    for name in RUN_FOR_REAL:
        ROWS[name].change(lab)
        before = lab.times()
        lab.run()
        after = lab.times()
        expected = started_again(name, lab.jobs())
        rewritten = {file for file in after if after[file] != before.get(file)}
        assert rewritten == set().union(*(job.outputs for job in expected)), name
        assert before.keys() <= after.keys(), name
        assert lab.planned() == {}, name


@pytest.mark.slow
def test_a_finished_study_that_was_moved_or_copied_with_its_code_has_nothing_to_rerun(tmp_path):
    """A clone in which the study ran, and then the same clone elsewhere: no rule may depend on where it lies."""
    lab = Lab(tmp_path / "here")
    lab.folder = write_study(lab.code, ONE_MODEL | RELATIVE, PROMPTS)
    lab.pretend_to_run()
    assert lab.planned() == {}
    moved = Path(shutil.move(lab.code, tmp_path / "there"))
    copied = shutil.copytree(moved, tmp_path / "a copy/of it")
    for code in (moved, copied):
        lab.folder, lab.snakefile = code, code / "Snakefile"
        assert lab.planned() == {}


TABLES = [f"results/{name}/reference.csv" for name in ("scores", "correlation", "lengths")]
TIMINGS = ["results/benchmark/reference.csv", "results/quality/reference.csv"]
TARGETS = {
    "prompt appended": TABLES,
    "prompt removed": TABLES,
    "sink threshold changed": TABLES,
    "bootstrap seed changed": TABLES,
    "statistics code edited": TABLES,
    "capture code edited": TABLES,
    "benchmark grid changed": TIMINGS,
}


@pytest.mark.slow
def test_tables_by_real_run(tmp_path):
    """The same, one row after the other, up to some tables of one model."""
    lab, done = Lab(tmp_path), None
    for name, targets in TARGETS.items():
        if targets != done:
            lab.run(*targets)
        ROWS[name].change(lab)
        expected = following(jobs := lab.jobs(*targets), first_of(name, jobs))
        assert expected, name
        before = lab.times()
        lab.run(*targets)
        after = lab.times()
        rewritten = {file for file in after if after[file] != before.get(file)}
        assert rewritten == set().union(*(job.outputs for job in expected)), name
        assert lab.planned(*targets) == {}, name
        done = targets


@pytest.mark.slow
def test_models_by_real_run(tmp_path):
    """A model added, another revision of it, and the model removed again, up to the scores of every model."""
    lab = Lab(tmp_path)
    lab.set(capture={"tokens_per_job": 1000})
    local, added = "results/scores/reference.csv", "results/scores/hub.csv"
    lab.run(local)
    of_local = lab.times()
    for name, commit in zip(("model added", "model revision changed"), COMMITS, strict=True):
        ROWS[name].change(lab)
        assert lab.planned(local, added) == {"fetch_model": 1, "capture": 1, "scores": 1}, name
        before = lab.times()
        lab.run(local, added)
        after = lab.times()
        rewritten = {file for file in after if after[file] != before.get(file)}
        assert rewritten == {"results/models/hub.json", "results/captures/hub/00000.h5", added}, name
        assert read_provenance(lab.folder / "results/captures/hub/00000.h5")["revision"] == commit
        assert lab.planned(local, added) == {}, name
    ROWS["model removed"].change(lab)
    assert lab.planned(local) == {}
    assert of_local.items() <= lab.times().items()
