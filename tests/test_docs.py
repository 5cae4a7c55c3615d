"""What the documentation and the workflow catalog's files name is there."""

import re
import shlex
import tomllib

import pytest
import yaml
from snakemake.cli import parse_args
from study import ROOT, copy_code, snakemake, write_study
from tiny import prompt_ids, tiny_model
from typer.main import get_command

from sinkstudy.cli import app

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
    assert (ROOT / "workflow/Snakefile").is_file()
    assert (ROOT / "config/README.md").is_file()
    assert list((ROOT / "workflow/rules").glob("*.smk"))
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["software-stack-deployment"]["conda"] is True
    assert usage["software-stack-deployment"]["apptainer"] is True
    assert usage["report"] is True


@pytest.mark.slow
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


README = (ROOT / "README.md").read_text(encoding="utf-8")
PLANS = (ROOT / "docs/plans.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"(?:^ {4}|`|&& )(snakemake[^`\n&]*)", re.M)
# Beside the commands that a run of the workflow tests (test_kills, test_faults).
RECOVERY = {
    "snakemake --unlock",
    "snakemake --cores 4",
    "snakemake --cores 4 verify_capture --forcerun verification",
}


@pytest.mark.slow
def test_commands_of_the_readme_plan_what_they_say(tmp_path):
    """`--report`, which needs a finished study, is run in test_workflow."""
    snakefile, planned = copy_code(tmp_path), {"snakemake --cores 4": "findings", "snakemake train_reference": "train"}
    commands = set(map(str.strip, COMMAND.findall(README)))
    assert planned.keys() < commands
    for command in commands - {"snakemake --report report.html"}:
        done = snakemake(tmp_path, *shlex.split(command)[1:], "-n", snakefile=snakefile)
        assert done.returncode == 0, done.stderr
        assert planned.get(command, "capture") in done.stdout + done.stderr


SHELL = [path for path in [*PAGES, *(ROOT / "config").glob("*.yaml")] if path.name != "rehearsal.md"]


@pytest.mark.parametrize("page", SHELL, ids=lambda page: page.name)
def test_snakemake_takes_every_command_of_a_page_as_it_is_meant(page):
    """An option that takes several values takes what was meant as a target, too."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"(?:^(?: {4,}|# )|`|&& |: )(snakemake (?:[^`\n&]|&(?!&))*)", text, re.M):
        if "--executor" in command:
            continue  # an executor that is not installed here
        _, given = parse_args(shlex.split(command)[1:])
        assert all((ROOT / path).is_file() for path in given.configfile or ()), command
        assert all(re.fullmatch(r"[\w./{}-]+", target) for target in given.targets), command


def test_the_commands_of_the_readme_are_those_of_the_command_line():
    commands = re.findall(r"(?:^ {4}|`)(sinkstudy (?:look|plan|check)[^`\n]*)", README, re.M)
    assert {command.split()[1] for command in commands} == {"look", "plan", "check"}
    group = get_command(app)
    for command in commands:
        name, *given = shlex.split(command)[1:]
        if given or name == "check":
            group.commands[name].make_context(name, given)


def test_installations_of_the_readme_name_files_and_extras_that_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    installs = re.findall(r"pip install (.+?)(?: &&|$)", README, re.M)
    assert len(installs) == 3
    for options in map(shlex.split, installs):
        assert (ROOT / options[options.index("-c") + 1]).is_file()
        assert set(re.findall(r"\[(.*)\]", options[-1])) <= extras


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"\n\n((?: {4}from sinkstudy.*\n)(?: {4}.*\n)+)", README)
    names = {"model": tiny_model("llama"), "input_ids": prompt_ids(9)}
    exec("\n".join(line[4:] for line in code.splitlines()), names)
    assert names["mass"].shape == (3, 4, 9)


def test_the_python_of_the_plans_page_runs():
    (code,) = re.findall(r"\n\n((?: {4}.*\n|\n(?= {4}))+)\nWhat it costs", PLANS)
    ids = prompt_ids(60)
    names = {"model": tiny_model("llama"), "fit_ids": ids, "check_ids": ids.flip(1), "input_ids": ids[:, :40]}
    shorter = {"(256, 512, 1024)": "(4, 8)", "0.005": "0.5"}
    lines = [re.sub("|".join(map(re.escape, shorter)), lambda m: shorter[m[0]], line[4:]) for line in code.splitlines()]
    exec("\n".join(lines), names)
    assert 0 < names["plan"].replaced < 12
    assert names["answer"].shape[1] > 40


def test_every_command_of_the_recovery_page_has_a_test():
    text = (ROOT / "docs/recovery.md").read_text(encoding="utf-8")
    assert set(map(str.strip, COMMAND.findall(text))) == RECOVERY
