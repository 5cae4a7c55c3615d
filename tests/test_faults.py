"""Killed runs, full disks, damaged files, two runs at once: what docs/recovery.md promises, on a small study."""

import random
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import psutil
import pytest
from study import ROOT, SMALL, planned, snakemake, start_snakemake, write_study

pytestmark = pytest.mark.slow

STUDY = {
    "models": {"reference": SMALL["models"]["reference"]},
    "prompts": "prompts.tsv",
    "capture": {"tokens_per_job": 35},  # three prompts to a shard
    "statistics": {"bootstrap": 20, "permutations": 20},
    "benchmark": SMALL["benchmark"],
}
KILLS = 20
# The documented recovery, as lists of arguments; its last command is the run itself.
*PREPARATION, RUN = (
    command.split()[1:]
    for command in re.search(r"^    (snakemake --unlock.*)$", (ROOT / "docs/recovery.md").read_text(), re.M)
    .group(1)
    .split(" && ")
)
TABLES = ["scores", "heads", "lengths", "correlation"]
TABLE_FILES = [f"results/{table}/reference.csv" for table in TABLES]
FILES = [*TABLE_FILES, "results/plans/reference/consistent.json"]
SHARDS = [f"results/captures/reference/0000{i}.h5" for i in range(2)]


def contents(folder: Path, files: list[str] = FILES) -> dict[str, bytes]:
    """Every table and plan of a finished study, byte by byte."""
    return {name: (folder / name).read_bytes() for name in files}


def run(folder: Path, *targets: str) -> subprocess.CompletedProcess:
    return snakemake(folder, *RUN, *(targets or FILES))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder, start = write_study(tmp_path_factory.mktemp("undisturbed"), STUDY), time.monotonic()
    assert run(folder).returncode == 0
    (folder / "seconds").write_text(str(time.monotonic() - start))
    return folder


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    """A copy of the finished study, with its time stamps and its records of what ran."""
    return shutil.copytree(undisturbed, tmp_path / "study")


def one_sentence(result: subprocess.CompletedProcess, *mentions: str) -> None:
    """The run failed, and what failed is one sentence that mentions all of these."""
    assert result.returncode != 0
    text = result.stdout + result.stderr
    assert "Traceback" not in text, text
    sentences = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, text
    for mention in mentions:
        assert mention in sentences[0], sentences[0]


# Killed runs


def scripts_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if ".snakemake/scripts" in " ".join(child.cmdline())]


def kill(process: subprocess.Popen, target: str, after: float) -> bool:
    """SIGKILL the workflow or one of its jobs after so many seconds; False when the run was over before."""
    end = time.monotonic() + after
    snakemake_process = psutil.Process(process.pid)
    while process.poll() is None:
        if time.monotonic() >= end:
            try:
                victims = [snakemake_process] if target == "workflow" else scripts_of(snakemake_process)
                if victims:
                    victims[0].send_signal(signal.SIGKILL)
                    return True
            except psutil.NoSuchProcess:
                pass
        time.sleep(0.02)
    return False


def temporaries(folder: Path) -> list[Path]:
    return list((folder / "results").rglob("*.tmp"))


def recover(folder: Path) -> None:
    for arguments in PREPARATION:
        assert snakemake(folder, *arguments).returncode == 0
    result = run(folder, *TABLE_FILES)
    assert result.returncode == 0, result.stderr[-3000:]


def kill_and_recover(target: str, folder: Path, undisturbed: Path) -> None:
    """Half of the kills, all of the workflow or all of jobs, each of a study of its own."""
    expected, seconds = contents(undisturbed, TABLE_FILES), float((undisturbed / "seconds").read_text())
    draw, kills, studies = random.Random(target), 0, 0
    while kills < KILLS // 2:
        studies += 1
        study = write_study(folder / f"{target}{studies}", STUDY)
        process = start_snakemake(study, *RUN, *TABLE_FILES)
        killed = kill(process, target, draw.uniform(0, 0.6 * seconds))
        broken = process.wait() != 0  # else it came too late
        assert killed or not broken, (study / "run.txt").read_text()[-3000:]
        kills += broken
        recover(study)
        assert contents(study, TABLE_FILES) == expected
        assert temporaries(study) == []


def test_twenty_kills_at_random_moments_are_each_recovered_with_identical_tables(undisturbed, tmp_path):
    with ThreadPoolExecutor() as lanes:
        for lane in [lanes.submit(kill_and_recover, target, tmp_path, undisturbed) for target in ("workflow", "job")]:
            lane.result()


@pytest.mark.parametrize("output", [SHARDS[0], TABLE_FILES[0]])
def test_what_a_job_killed_while_it_writes_leaves_behind_is_gone_after_recovery(undisturbed, tmp_path, output):
    folder = write_study(tmp_path, STUDY)
    (folder / output).parent.mkdir(parents=True)
    process = start_snakemake(folder, *RUN, output)
    while not temporaries(folder):
        assert process.poll() is None
    for job in scripts_of(psutil.Process(process.pid)):
        job.kill()
    assert process.wait() != 0
    assert len(temporaries(folder)) == 1
    recover(folder)
    assert contents(folder, TABLE_FILES) == contents(undisturbed, TABLE_FILES)
    assert temporaries(folder) == []


# Damaged captures


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["hello/sink_mass"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)


def replace_by_another(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["weights"] = [1.0, 2.0]


def replace_by_text(path: Path) -> None:
    path.write_text("no HDF5")


def change_the_schema(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["schema"] = 0


@pytest.mark.parametrize("damage", [cut, flip_a_bit, replace_by_another, replace_by_text, change_the_schema])
def test_a_damaged_capture_is_named_when_read_and_captured_again_by_the_line_that_is_given(finished, damage):
    expected, other = contents(finished), (finished / SHARDS[1]).read_bytes()
    damage(finished / SHARDS[0])
    damaged = (finished / SHARDS[0]).read_bytes()
    one_sentence(run(finished, "results/lengths/reference.csv"), f"rm {SHARDS[0]} && snakemake --cores 4")
    assert (finished / SHARDS[0]).read_bytes() == damaged
    (finished / SHARDS[0]).unlink()
    result = run(finished)
    assert result.returncode == 0, result.stderr[-3000:]
    assert contents(finished) == expected
    assert (finished / SHARDS[1]).read_bytes() == other


def test_a_shard_in_the_place_of_another_stops_every_job_that_reads_it(finished):
    shutil.copyfile(finished / SHARDS[0], finished / SHARDS[1])
    for target in ("scores/reference.csv", "lengths/reference.csv", "verification/reference.csv", "explorer.html"):
        one_sentence(run(finished, f"results/{target}"), "shard 00001", f"rm {SHARDS[1]} && snakemake --cores 4")


def test_the_documented_line_reads_all_captures_again(finished):
    (line,) = re.findall(r"`snakemake ([^`]*verify_capture[^`]*)`", (ROOT / "docs/recovery.md").read_text())
    assert run(finished, "results/verification/reference.csv").returncode == 0
    assert planned(finished, *line.split()) == {"verification": 1, "verify_capture": 1}


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(folder, "200k")` mounts a file system of that size there, or changes the one that is there."""
    mounted = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"remount,{options}" if folder in mounted else options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def half_done(small_disk, tmp_path) -> Path:
    """A study whose `results` are a file system of their own, with the first of two captures finished."""
    folder = write_study(tmp_path / "study", STUDY)
    small_disk(folder / "results", "size=20m")
    assert run(folder, SHARDS[0]).returncode == 0
    return folder


def used_kilobytes(folder: Path) -> int:
    usage = shutil.disk_usage(folder)
    return (usage.total - usage.free) // 1024


@pytest.mark.parametrize(
    ("options", "mentions"),
    [("size={used}k", "No space left"), ("ro", "read-only")],
    ids=["full", "unwritable"],
)
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_finished_results_alone(
    undisturbed, half_done, small_disk, options, mentions
):
    results, before = half_done / "results", (half_done / SHARDS[0]).stat().st_mtime_ns
    small_disk(results, options.format(used=used_kilobytes(results) + 8))
    one_sentence(run(half_done), mentions)
    assert (half_done / SHARDS[0]).stat().st_mtime_ns == before
    small_disk(results, "rw,size=20m")
    result = run(half_done)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (half_done / SHARDS[0]).stat().st_mtime_ns == before
    assert contents(half_done) == contents(undisturbed)


def test_results_that_are_a_file_are_refused_before_any_job(tmp_path):
    folder = write_study(tmp_path / "study", STUDY)
    (folder / "results").touch()
    one_sentence(run(folder), "results", "not a directory")


# Locks


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_comes_through(undisturbed, tmp_path):
    folder = write_study(tmp_path / "study", STUDY)
    first = start_snakemake(folder, *RUN, *FILES)
    while not list((folder / ".snakemake/locks").glob("*")):
        assert first.poll() is None
        time.sleep(0.05)
    second = run(folder)
    assert second.returncode != 0
    assert "lock" in second.stderr
    assert "--unlock" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.wait() == 0
    assert contents(folder) == contents(undisturbed)


def test_the_lock_of_a_killed_run_is_named_and_the_documented_line_removes_it(finished):
    expected = contents(finished)
    (finished / FILES[0]).unlink()
    killed = start_snakemake(finished, *RUN, *FILES)
    while not list((finished / ".snakemake/locks").glob("*")):
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    refused = run(finished)
    assert refused.returncode != 0
    assert "--unlock" in refused.stderr
    for arguments in PREPARATION:
        assert snakemake(finished, *arguments).returncode == 0
    assert run(finished).returncode == 0
    assert contents(finished) == expected
