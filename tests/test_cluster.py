"""The profiles: one GPU job at a time on this machine, and a real Slurm run that gives the same results."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from slurm import IMPATIENT, jobs, loopback_slurm, missing
from study import CLONE, ROOT, results_of, snakemake, write_study

needs_slurm = pytest.mark.skipif(bool(missing()), reason=missing())
# The fewest jobs in which every kind is: with and without a GPU, alone and in each group of the profile.
TARGETS = [
    "results/verification/reference.csv",
    "results/plans/reference/consistent.json",
    "results/figures/heatmap_reference_all.png",
    "results/figures/lengths_reference.png",
    "results/lengths/reference.csv",
]

ONE_AT_A_TIME = """
rule all:
    input: expand("{i}.done", i=range(3))

rule job:
    output: "{i}.done"
    resources: gpu=1
    shell: "mkdir gpu && sleep 0.5 && rmdir gpu && touch {output}"
"""


@pytest.mark.parametrize(("profile", "shared"), [("profiles/default", False), ("none", True)])
def test_the_default_profile_gives_a_gpu_to_one_job_at_a_time(tmp_path, profile, shared):
    """A job whose neighbour still holds the GPU cannot make the directory, and fails."""
    (tmp_path / "Snakefile").write_text(ONE_AT_A_TIME)
    profile = str(ROOT / profile) if profile != "none" else profile
    done = snakemake(tmp_path, "--workflow-profile", profile, snakefile=tmp_path / "Snakefile")
    assert (done.returncode != 0) == shared, done.stderr


def rules() -> dict[str, str]:
    """The text of every rule of the workflow by name."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    return {part.split(":", 1)[0]: part for part in re.split(r"^rule ", text, flags=re.M)[1:]}


def gpu_rules() -> set[str]:
    return {name for name, text in rules().items() if "gpu=1" in text}


def test_the_slurm_profile_groups_rules_that_exist_and_need_no_gpu():
    groups = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())["groups"]
    for name in groups:
        assert name in rules().keys() - gpu_rules(), name


def test_every_rule_that_loads_a_model_asks_for_a_gpu():
    for name, text in rules().items():
        script = re.search(r'"../scripts/(\w+\.py)"', text)
        code = (ROOT / "workflow/scripts" / script[1]).read_text() if script else ""
        assert ("gpu=1" in text) == ("load_model" in code or name == "train_reference"), name


def test_every_job_has_a_log_an_environment_and_limits():
    for name, text in rules().items():
        if "script:" in text:
            assert re.search(r'log:\n +"logs/', text), name
            assert '"../../envs/sinkstudy.yaml"' in text, name
            assert name == "fetch_model" or re.search(r"mem_mb=.*runtime=", text, re.S), name


@pytest.fixture(scope="module")
def clustered(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """A part of the small study run through profiles/slurm: its folder, and Slurm's records of its jobs."""
    folder = write_study(tmp_path_factory.mktemp("clustered"), CLONE)
    for name, target in {"models": "models", "texts": "texts", "foreign": "models/reference"}.items():
        (folder / name).symlink_to(ROOT / target)
    command = [sys.executable, "-c", IMPATIENT, "--snakefile", ROOT / "Snakefile", "--directory", folder]
    command += ["--workflow-profile", ROOT / "profiles/slurm", *TARGETS]
    # What a user would write: a partition for one rule; squeue, since there is no accounting database.
    command += ["--set-resources", "capture:slurm_partition=gpu", "--slurm-status-command", "squeue"]
    command += ["--slurm-keep-successful-logs", "--slurm-init-seconds-before-status-checks", "1"]
    with loopback_slurm(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return folder, jobs(environment)


def comments(submitted: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Jobs by rule or group, which the executor writes into the comment."""
    found: dict[str, list[dict[str, str]]] = {}
    for job in submitted:
        name = re.match(r"rule_(.+?)(_wildcards_|$)", job["Comment"])[1]
        found.setdefault(name, []).append(job)
    return found


@needs_slurm
@pytest.mark.slow
def test_results_from_slurm_are_those_of_a_local_run_to_the_byte(clustered, finished):
    here, there = results_of(clustered[0]), results_of(finished)
    assert {f"captures/reference/0000{i}.h5" for i in range(3)} < here.keys()
    assert {"scores/reference.csv", "correlation/reference.csv", *(name[8:] for name in TARGETS)} < here.keys()
    assert [name for name in here if here[name] != there[name]] == []


@needs_slurm
@pytest.mark.slow
def test_slurm_was_asked_for_a_gpu_by_the_rules_that_want_one_and_by_no_other(clustered):
    _, submitted = clustered
    assert submitted
    assert all(job["JobState"] == "COMPLETED" for job in submitted)
    for name, of_rule in comments(submitted).items():
        for job in of_rule:
            assert (job.get("TresPerJob") == "gres:gpu:1") == (name in gpu_rules()), job
    assert {"capture", "verification"} <= comments(submitted).keys() & gpu_rules()


@needs_slurm
@pytest.mark.slow
def test_memory_runtime_and_partition_reach_slurm_as_rules_and_overrides_say(clustered):
    found = comments(clustered[1])
    (verification,) = found["verification"]
    assert "mem=32000M" in verification["TRES"]
    assert (verification["TimeLimit"], verification["Partition"]) == ("01:00:00", "cpu")
    assert {job["Partition"] for job in found["capture"]} == {"gpu"}


@needs_slurm
@pytest.mark.slow
def test_no_script_of_a_gpu_job_is_started_twice(clustered):
    folder, submitted = clustered
    gpu_jobs = [job for name, of_rule in comments(submitted).items() if name in gpu_rules() for job in of_rule]
    assert len(gpu_jobs) == 4  # three shards and their verification
    for job in gpu_jobs:
        assert job["NumTasks"] == "1"
        (log,) = (folder / ".snakemake/slurm_logs").rglob(f"{job['JobId']}.log")
        # Once where the script runs, once in the step above it.
        assert log.read_text().count("Finished jobid: 0 (Rule:") == 2


@needs_slurm
@pytest.mark.slow
def test_the_shards_are_reduced_by_a_job_each_and_gathered_by_one(clustered):
    found = comments(clustered[1])
    assert [len(found[name]) for name in ("reduced", "correlation", "statistics")] == [3, 1, 1]


@needs_slurm
@pytest.mark.slow
def test_short_jobs_share_allocations(clustered):
    found = comments(clustered[1])
    assert any(name.startswith("tables_") for name in found)
    assert any(name.startswith("figures_") for name in found)
    assert not found.keys() & {"scores", "heads", "heatmaps", "maps_figure"}
    made = sum(1 for _ in (clustered[0] / "logs").rglob("*.log"))
    assert len(clustered[1]) == made - 3  # scores, heads and a plan in one, two sets of figures in another


@needs_slurm
@pytest.mark.slow
def test_the_loopback_slurm_ends_with_every_job_it_ran(tmp_path):
    with loopback_slurm(tmp_path / "cluster") as environment:
        script = f"echo $$ > {tmp_path}/pid; exec sleep 600"
        subprocess.run(["sbatch", "--output=/dev/null", "--wrap", script], env=environment, check=True, cwd=tmp_path)
        end = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.2)
        pid = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert subprocess.run(["scontrol", "ping"], env=environment, capture_output=True, check=False).returncode != 0
