"""What the documentation and the workflow catalog's files name is there."""

import re

import pytest
import yaml
from study import ROOT, snakemake, write_study

PAGES = [ROOT / "README.md", ROOT / "config/README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRACKED = ["sinkstudy/", "workflow/", "tests/", "docs/", "profiles/", "benchmarks/", "envs/", "models/", "config/"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`([\w./-]+)`", text)
    named = {path for path in quoted if path.startswith(tuple(TRACKED)) and "ours" not in path}  # the reader's own
    linked = set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert page.name != "extending.md" or len(named) > 10  # the pattern finds paths
    for path in named:
        assert (ROOT / path).exists(), path
    for link in linked:
        assert (page.parent / link).exists(), link


def test_the_catalog_finds_what_its_standardized_usage_asks_for():
    """The criteria of the Snakemake workflow catalog, as its page on adding workflows lists them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    assert (ROOT / "workflow/Snakefile").is_file()
    assert (ROOT / "config/README.md").is_file()
    assert list((ROOT / "workflow/rules").glob("*.smk"))
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["software-stack-deployment"]["conda"] is True
    assert usage["report"] is True


def test_the_catalogs_snakefile_and_a_module_of_it_plan_the_same_jobs(tmp_path):
    """A clone's workflow, used by path from elsewhere."""
    study = write_study(tmp_path / "study")
    (study / "Snakefile").write_text(
        f'configfile: "config.yaml"\n\n\nmodule sinkstudy:\n    snakefile:\n        "{ROOT}/workflow/Snakefile"\n'
        "    config:\n        config\n\n\nuse rule * from sinkstudy\n\n\n"
        "rule mine:\n    default_target: True\n    input:\n        rules.all.input,\n"
    )
    plans = {}
    for name, file in {
        "root": ROOT / "Snakefile",
        "catalog": ROOT / "workflow/Snakefile",
        "module": study / "Snakefile",
    }.items():
        done = snakemake(study, "-n", snakefile=file)
        assert done.returncode == 0, done.stderr
        table = (done.stdout + done.stderr).split("Job stats:")[1]
        plans[name] = dict(re.findall(r"^(\w+) +(\d+)$", table, re.M))
        for target in ("all", "study", "mine", "total"):
            plans[name].pop(target, None)
    assert plans["root"] == plans["catalog"] == plans["module"]
    assert plans["root"]["capture"] == "6"
