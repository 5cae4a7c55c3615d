"""The image: what the Dockerfile says is what the README, the lock and the workflow say."""

import os
import re
import shlex
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from study import ROOT, snakemake, write_study

LINES = re.findall(r"^([A-Z]+) (.+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_image_is_made_and_run_by_the_commands_of_the_readme():
    (study,) = re.findall(r"^Run the study:\n\n {4}(.+)$", README, re.M)
    install, run = study.split(" && ")[2:]
    said = dict(LINES)
    assert [name for name, _ in LINES] == ["FROM", "WORKDIR", "COPY", "RUN", "CMD"]
    assert said["RUN"].replace(" --no-cache-dir", "") == install
    assert shlex.join(yaml.safe_load(said["CMD"])) == run


def test_the_image_has_the_python_of_the_other_environments_and_all_that_an_installation_reads():
    said = dict(LINES)
    (version,) = re.findall(r"^python:([\d.]+)-slim$", said["FROM"])
    ci = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = ci["run"]["steps"]
    assert version in [step["with"]["python-version"] for step in steps if "with" in step]
    conda = yaml.safe_load((ROOT / "envs/sinkstudy.yaml").read_text(encoding="utf-8"))["dependencies"]
    assert f"python={version}" in conda
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={version}"
    options = shlex.split(said["RUN"])
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    needed = [
        options[options.index("-c") + 1],
        "pyproject.toml",
        project["readme"],
        "sinkstudy",
        "workflow",
        "Snakefile",
    ]
    for path in [*needed, "config.yaml", "config", "models", "prompts.tsv", "texts", "envs", "profiles"]:
        assert (ROOT / path).exists()
        assert not any(fnmatch(path, pattern) for pattern in left_out), path
    runs = [step["run"] for step in ci["image"]["steps"] if "run" in step]
    assert runs[0] == "docker build -t sinkstudy ."
    assert "--configfile config/quick.yaml" in runs[1]


@pytest.mark.slow
def test_with_apptainer_every_job_runs_in_the_image(tmp_path):
    """Apptainer is played by a script that notes what it is asked for and runs the command outside of any image."""
    log, stub = tmp_path / "asked", tmp_path / "bin/apptainer"
    stub.parent.mkdir()
    stub.write_text(
        '#!/bin/sh\ncase "$1" in *version) echo "apptainer version 1.4.0"; exit;; esac\n'
        f'echo "$*" | head -1 >> {log}\nfor last; do :; done\nexec bash -c "$last"\n'
    )
    stub.chmod(0o755)
    target = "results/simulation/tiny-8b.csv"
    path = {"PATH": os.pathsep.join([str(stub.parent), str(Path(sys.executable).parent), os.environ["PATH"]])}
    study = write_study(tmp_path / "study")
    done = snakemake(study, target, "--sdm", "apptainer", environment=path)
    assert done.returncode == 0, done.stderr
    assert (study / target).is_file()
    asked = log.read_text()
    assert asked.startswith("exec ")
    assert " sinkstudy.sif " in asked  # of the study's folder, where jobs run
