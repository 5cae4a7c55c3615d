"""The rerun contract: every row of docs/reruns.md by dry run and by real run, on copies of the small study."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hub_cache import cache_model
from study import CLONE, PROMPTS, ROOT, planned, snakemake, write_prompts

from sinkstudy.store import open_capture

TABLE = re.compile(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.M)
COMMITS = ["0" * 40, "1" * 40]


@dataclass(frozen=True)
class Job:
    rule: str
    outputs: frozenset[str]
    inputs: frozenset[str]
    costs: str  # its benchmark file, which Snakemake's summary leaves out and the cost table reads


class Lab:
    """A study that has run to its end in a clone, whose code and configuration may be edited."""

    def __init__(self, folder: Path):
        self.folder, self.snakefile = folder, folder / "Snakefile"
        self.config, self.prompts, self.cores = dict(CLONE), list(PROMPTS), "4"

    def set(self, **sections: dict) -> None:
        self.config |= sections
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def set_prompts(self, prompts: list[tuple]) -> None:
        self.prompts = prompts
        write_prompts(self.folder, prompts)

    def append(self, file: str, line: str) -> None:
        with (self.folder / file).open("a", encoding="utf-8") as stream:
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
        """Of every result that is a file; a table that is a folder, too, is written by the same job as its CSV."""
        files = (path for path in (self.folder / "results").rglob("*") if path.is_file())
        files = (path for path in files if path.suffix not in (".tsv", ".parquet", ""))
        return {path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns for path in files}


def following(jobs: list[Job], first: Iterable[Job]) -> set[Job]:
    """`first`, and every job that takes a file of one of them, and so on."""
    reached: set[Job] = set()
    new = set(first)
    while new:
        reached |= new
        made = frozenset().union(*(job.outputs | {job.costs} for job in reached))
        new = {job for job in jobs if job.inputs & made} - reached
    return reached


@pytest.fixture
def lab(finished, tmp_path) -> Lab:
    """In another place than where it ran: no rule may depend on that."""
    return Lab(shutil.copytree(finished, tmp_path / "a copy/of it"))


@pytest.fixture(scope="module")
def jobs(finished) -> list[Job]:
    """The jobs of the study as it ran."""
    return Lab(finished).jobs()


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
    drawing = {found[1] for found in scripts if found and found[2].startswith("fig_")}
    return drawing - {"bos_arms_figure"}  # the study has one setting of bos, and so nothing to compare


def edit_text(lab: Lab) -> None:
    lab.set_prompts([(p, s, t + " Really?" if p == "why" else t) for p, s, t in lab.prompts])


def edit_caption(lab: Lab) -> None:
    lab.append("workflow/report/heatmap.rst", "Another sentence.")


def edit_comments(lab: Lab) -> None:
    for file in ("capture/masses.py", "stats/correlation.py", "figures/style.py", "prompts.py"):
        path = lab.folder / "sinkstudy" / file
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace('"""', '"""Edited. ', 1) + "\n# a comment\n", encoding="utf-8")


def edit_error_sentence(lab: Lab) -> None:
    """In code that every stage reaches."""
    path = lab.folder / "sinkstudy/prompts.py"
    before = path.read_text(encoding="utf-8")
    after = before.replace("appears twice; ids must be unique", "is there twice; make ids unique")
    assert after != before
    path.write_text(after, encoding="utf-8")


def hub(commit: str) -> dict:
    return CLONE["models"] | {"hub": {"source": "lab/tiny", "revision": commit}}


@dataclass(frozen=True)
class Row:
    change: Callable[[Lab], None]
    first: dict[str, str]  # rules that start again, with a pattern for their output files


def captures(shards: str) -> dict[str, str]:
    return {"capture": rf"/captures/\w+/{shards}\.h5"}


OF_HUB = {"fetch_model": "/hub"}
OF_THRESHOLD = ["scores", "simulation", "explorer", "lengths_figures", "predictors_figure", "statistics_figures"]
ROWS = {
    # Five prompts, two per shard: "why" is in the second shard, and there is room in the third.
    "prompt text edited": Row(edit_text, captures("00001")),
    "prompt appended": Row(lambda lab: lab.set_prompts([*lab.prompts, ("more", "short", "One.")]), captures("00002")),
    "prompt removed": Row(
        lambda lab: lab.set_prompts([row for row in lab.prompts if row[0] != "why"]), captures("0000[12]")
    ),
    "sink threshold changed": Row(lambda lab: lab.set(sinks={"threshold": 0.8}), dict.fromkeys(OF_THRESHOLD, "")),
    "bootstrap seed changed": Row(
        lambda lab: lab.set(statistics=CLONE["statistics"] | {"seed": 5}),
        dict.fromkeys(["correlation", "heads", "heldout", "mechanism", "predictors", "simulation"], "")
        | {"skipping": "", "statistics": ""},
    ),
    "figure style changed": Row(
        lambda lab: lab.append("sinkstudy/figures/style.py", "EDITED = 1"), dict.fromkeys(drawing_rules(), "")
    ),
    "caption edited": Row(edit_caption, {}),
    "benchmark grid changed": Row(
        lambda lab: lab.set(benchmark=CLONE["benchmark"] | {"lengths": [32]}),
        {"benchmark": "", "quality": "", "skipping": ""},
    ),
    "`--cores` changed": Row(lambda lab: setattr(lab, "cores", "2"), {}),
    "comment or docstring edited": Row(edit_comments, {}),
    "error sentence edited": Row(edit_error_sentence, {}),
    "statistics code edited": Row(
        lambda lab: lab.append("sinkstudy/stats/correlation.py", "EDITED = 1"),
        {"correlation": "", "heldout": "", "simulation": "", "statistics": ""},
    ),
    "capture code edited": Row(lambda lab: lab.append("sinkstudy/capture/masses.py", "EDITED = 1"), {"capture": ""}),
    "model added": Row(lambda lab: lab.set(models=hub(COMMITS[0])), OF_HUB),
    "model revision changed": Row(lambda lab: lab.set(models=hub(COMMITS[1])), OF_HUB),
    "model removed": Row(
        lambda lab: lab.set(models={name: CLONE["models"][name] for name in ("reference", "untrained")}),
        {"comparison": "", "costs": "", "explorer": "", "findings": ""},
    ),
}


def documented() -> dict[str, str]:
    rows = TABLE.findall((ROOT / "docs/reruns.md").read_text(encoding="utf-8"))[2:]
    return {re.sub(r" \(.*\)", "", change): first for change, first in rows}


def test_the_documented_table_is_the_tested_one():
    assert {*RUN_FOR_REAL, "model added", "model revision changed", "model removed"} == ROWS.keys()
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


NOTHING = [name for name, row in ROWS.items() if not row.first]


@pytest.mark.slow
def test_a_study_that_was_copied_with_its_code_and_edits_that_decide_nothing_rerun_nothing(lab):
    for name in NOTHING:
        ROWS[name].change(lab)
    assert lab.planned() == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("model ") and name not in NOTHING])
def test_by_dry_run(lab, jobs, name):
    ROWS[name].change(lab)
    expected = started_again(name, lab.jobs() if name.startswith("prompt ") else jobs)
    assert lab.planned() == Counter(job.rule for job in expected)


@pytest.mark.slow
def test_a_model_that_is_added_or_removed_by_dry_run(lab, jobs):
    of_all_models = following(jobs, first_of("model removed", jobs))
    of_one_model = [job for job in jobs if any(re.search("[/_]reference[/_.]", output) for output in job.outputs)]
    ROWS["model added"].change(lab)
    assert lab.planned() == Counter(job.rule for job in (*of_all_models, *of_one_model)) + Counter(["fetch_model"])
    ROWS["model removed"].change(lab)
    assert lab.planned() == Counter(job.rule for job in of_all_models)


TABLES = [f"results/{name}/reference.csv" for name in ("scores", "correlation", "lengths")]
FIGURES = [f"results/figures/{name}_reference.svg" for name in ("maps", "lengths", "weakening", "contour")]
DERIVED = [*TABLES, *FIGURES, *(f"results/{name}/reference.csv" for name in ("verification", "heads", "heldout"))]
TIMINGS = ["results/benchmark/reference.csv", "results/quality/reference.csv"]
# In this order on one study: what a row left undone would be written by the next.
RUN_FOR_REAL = {
    "benchmark grid changed": TIMINGS,
    "prompt text edited": DERIVED,
    "figure style changed": DERIVED,
    **dict.fromkeys(NOTHING, DERIVED),
    "prompt appended": TABLES,
    "prompt removed": TABLES,
    "sink threshold changed": TABLES,
    "bootstrap seed changed": TABLES,
    "statistics code edited": TABLES,
    "capture code edited": TABLES,
}


@pytest.mark.slow
def test_by_real_run(lab):
    """Files that are written anew, and files that are not touched, up to some results of one model."""
    graphs = {}
    for name, targets in RUN_FOR_REAL.items():
        ROWS[name].change(lab)
        if name in NOTHING and name != NOTHING[-1]:
            continue  # one run for all of these
        known = tuple(targets), tuple(lab.prompts)
        graphs[known] = jobs = graphs.get(known) or lab.jobs(*targets)
        expected = following(jobs, first_of(name, jobs))
        assert bool(expected) == (name not in NOTHING), name
        before = lab.times()
        lab.run(*targets)
        after = lab.times()
        rewritten = {file for file in after if after[file] != before.get(file)}
        written = {output for job in expected for output in job.outputs if Path(output).suffix}
        assert rewritten == written, name
        assert before.keys() <= after.keys(), name
    assert lab.planned(*TABLES) == {}


@pytest.mark.slow
def test_models_by_real_run(lab):
    """A model added, and another revision of it, beside a table of another model."""
    targets = ["results/captures/hub/00000.h5", "results/scores/reference.csv"]
    for name, commit in zip(("model added", "model revision changed"), COMMITS, strict=True):
        ROWS[name].change(lab)
        before = lab.times()
        lab.run(*targets)
        after = lab.times()
        rewritten = {file for file in after if after[file] != before.get(file)}
        assert rewritten == {"results/models/hub.json", targets[0]}, name
        with open_capture(lab.folder / targets[0]) as capture:
            assert capture.attributes["revision"] == commit
    assert lab.planned(*targets) == {}
