"""Damaged files, full disks, two runs at once: what docs/recovery.md promises, on copies of the small study."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import h5py
import pytest
from study import documented, planned, results_of, snakemake, start_snakemake

pytestmark = pytest.mark.slow

*_, RUN = documented("recovery.md", "snakemake --unlock")
TABLES = [f"results/{table}/reference.csv" for table in ("scores", "heads", "lengths", "correlation")]
SHARDS = [f"results/captures/reference/0000{i}.h5" for i in range(3)]


def run(folder: Path, *targets: str) -> subprocess.CompletedProcess:
    return snakemake(folder, *RUN, *(targets or TABLES))


def sentences(result: subprocess.CompletedProcess) -> list[str]:
    """What a failed run says to its user, one line for each job that failed."""
    assert result.returncode != 0
    text = result.stdout + result.stderr
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


# Damaged captures


def flip_a_bit(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["hello/sink_mass"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_capture_is_named_when_read_and_captured_again_by_the_line_that_is_given(finished, copied):
    """Other kinds of damage are in test_store."""
    flip_a_bit(copied / SHARDS[0])
    damaged = (copied / SHARDS[0]).read_bytes()
    (copied / "results/lengths/reference.csv").unlink()
    (sentence,) = sentences(run(copied, "results/lengths/reference.csv"))
    assert f"rm {SHARDS[0]} && snakemake --cores 4" in sentence
    assert (copied / SHARDS[0]).read_bytes() == damaged
    (copied / SHARDS[0]).unlink()
    result = run(copied)
    assert result.returncode == 0, result.stderr[-3000:]
    assert results_of(copied) == results_of(finished)


def test_a_shard_in_the_place_of_another_stops_every_job_that_reads_it(copied):
    shutil.copyfile(copied / SHARDS[0], copied / SHARDS[1])
    targets = [f"{name}/reference.csv" for name in ("scores", "heldout", "verification")]
    said = sentences(run(copied, "--keep-going", *(f"results/{target}" for target in targets)))
    assert len(said) == len(targets)
    # These take tables, too, which would have to be made anew before them.
    late = ["explorer", "lengths_figures", "maps_figure"]
    drawn = ["explorer.html", "figures/head_curves_reference.png", "figures/maps_reference.png"]
    drawn = [f"results/{name}" for name in drawn]
    said += sentences(run(copied, "--keep-going", "--force", "--allowed-rules", *late, "--", *drawn))
    assert len(said) == len(targets) + len(late)
    for sentence in said:
        assert "shard 00001" in sentence
        assert f"rm {SHARDS[1]} && snakemake --cores 4" in sentence


def test_the_documented_line_reads_all_captures_again(copied):
    (line,) = documented("recovery.md", "snakemake --cores 4 verify_capture")
    assert planned(copied, *line) == {"verification": 3, "verify_capture": 1}


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


def used_kilobytes(folder: Path) -> int:
    usage = shutil.disk_usage(folder)
    return (usage.total - usage.free) // 1024


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_finished_results_alone(finished, copied, small_disk):
    results = copied / "results"
    results.rename(copied / "kept")
    small_disk(results, "size=50m")
    shutil.copytree(copied / "kept", results, dirs_exist_ok=True)
    (copied / SHARDS[1]).unlink()
    before = (copied / SHARDS[0]).stat().st_mtime_ns
    for options, mentions in ((f"size={used_kilobytes(results) + 8}k", "No space left"), ("ro", "read-only")):
        small_disk(results, options)
        (sentence,) = sentences(run(copied, SHARDS[1]))
        assert mentions in sentence
    small_disk(results, "rw,size=50m")
    result = run(copied, SHARDS[1], *TABLES)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (copied / SHARDS[0]).stat().st_mtime_ns == before
    assert results_of(copied) == results_of(finished)


# Locks


def test_a_second_run_in_the_same_directory_is_refused_and_the_first_comes_through(finished, copied):
    (copied / TABLES[0]).unlink()
    first = start_snakemake(copied, *RUN, *TABLES)
    while not list((copied / ".snakemake/locks").glob("*")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)
    second = run(copied)
    first.send_signal(signal.SIGCONT)
    assert second.returncode != 0
    assert "lock" in second.stderr
    assert "--unlock" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.wait() == 0
    assert results_of(copied) == results_of(finished)
