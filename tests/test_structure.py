"""The direction of the code: what may import what."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

PACKAGE = Path("sinkstudy")
LIGHT = [
    "measures.captured",
    "stats.scores",
    "stats.analysis",
    "stats.predictors",
    "simulation.heldout",
    "explorer",
    "findings.html",
    "findings.verdicts",
    "stats.comparison",
    "figures.maps",
    "figures.heatmaps",
    "stats.profile",
    "workflow.config",
]


def test_stages_past_the_captures_and_the_workflow_do_not_load_torch():
    modules = [*LIGHT, "prompts", "models.sources", "workflow.fingerprint", "store", "store.tables"]
    loaded = "next((m for m in ('torch', 'transformers') if m in sys.modules), None)"
    code = "import importlib, sys\n" + "\n".join(
        f"importlib.import_module('sinkstudy.{module}'); assert not {loaded}, '{module}'" for module in modules
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name and name.split(".")[0] == "sinkstudy"}


# A room imports those of lower floors, and none beside it.
FLOORS = [
    {"errors"},
    {"measures", "prompts"},
    {"store", "models"},
    {"capture", "stats", "attention"},
    {"simulation", "figures", "findings", "explorer", "evaluation", "reference", "workflow"},
    {"cli"},
    {"__main__"},
]


def room_of(name: str) -> str:
    return name.split(".")[1]


def test_every_room_imports_from_lower_floors_alone():
    floor = {room: at for at, rooms in enumerate(FLOORS) for room in rooms}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for other in {room_of(name) for name in imported(path) if name != "sinkstudy"} - {room}:
            assert floor[other] < floor[room], (path, other)


def test_the_optimizing_half_imports_nothing_of_the_measuring_half():
    for path in (PACKAGE / "attention").rglob("*.py"):
        allowed = {"sinkstudy.errors", "sinkstudy.models.implementation"}
        assert all(n.startswith("sinkstudy.attention") or n in allowed for n in imported(path)), path


def test_the_measuring_half_imports_nothing_of_the_optimizing_half():
    for path in PACKAGE.rglob("*.py"):
        if not {"attention", "evaluation"} & set(path.parts):
            assert not any(name.startswith("sinkstudy.attention") for name in imported(path)), path


def test_only_scripts_know_snakemake():
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) snakemake|snakemake\.(input|output|params)", path.read_text(), re.M), (
            path
        )


def test_scripts_are_short():
    for path in Path("workflow/scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path


def test_the_conda_environment_pins_what_the_lock_pins():
    lines = Path("requirements.lock").read_text().lower().splitlines()
    lock = {line for line in lines if line and not line.startswith("#")}
    pins = yaml.safe_load(Path("envs/sinkstudy.yaml").read_text())["dependencies"][-1]["pip"]
    wanted = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    assert {pin.split("==")[0] for pin in pins} == {line.split(">=")[0] for line in wanted}
    assert set(pins) <= lock


@pytest.mark.parametrize(
    "command",
    [
        "ruff check .",
        "ruff format --check .",
        "snakefmt --check Snakefile workflow",
        "snakemake --lint",
    ],
)
def test_formatting_and_lint_are_clean(command):
    program, *arguments = command.split()
    done = subprocess.run([sys.executable, "-m", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
