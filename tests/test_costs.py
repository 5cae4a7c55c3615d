"""The cost table, against benchmark files written by hand and by Snakemake."""

import math

import pytest
from study import snakemake

from sinkstudy.workflow.costs import COLUMNS, cost_table

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def write(root, name, seconds, rss, cpu):
    path = root / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}{seconds}\t0:00:01\t{rss}\t9\t9\t9\t0\t0\t50\t{cpu}\n")
    return path


def test_times_add_up_over_jobs_and_the_slowest_and_the_largest_are_named(tmp_path):
    capture = [
        write(tmp_path, "capture/a/00000", 10.5, 900.25, 12.0),
        write(tmp_path, "capture/a/00001", 20.25, 800.5, 30.5),
        write(tmp_path, "capture/b/00000", 1.0, 1000.75, 0.5),
    ]
    table = cost_table({"capture": capture, "scores": [write(tmp_path, "scores/a", 2.0, 100.0, 1.5)]}, tmp_path)
    assert table.to_dict("records") == [
        dict(zip(COLUMNS, ("capture", 3, 31.75, 20.25, "a/00001", 43.0, 1000.75, "b/00000"), strict=True)),
        dict(zip(COLUMNS, ("scores", 1, 2.0, 2.0, "a", 1.5, 100.0, "a"), strict=True)),
    ]


def test_a_stage_without_jobs_has_no_row_and_a_stage_may_be_one_file(tmp_path):
    table = cost_table({"simulation": [], "comparison": [write(tmp_path, "comparison", 2.0, 100.0, 1.5)]}, tmp_path)
    assert table[["stage", "jobs", "longest"]].to_numpy().tolist() == [["comparison", 1, "comparison"]]


@pytest.mark.parametrize("seen", ["NA", "-", 1.57])
def test_a_job_too_short_to_sample_has_no_memory_and_hides_no_other(tmp_path, seen):
    """What is seen of such a job is the shell that starts it, if anything."""
    short = write(tmp_path, "plan/a", 0.9, seen, seen)
    (row,) = cost_table({"plan": [short]}, tmp_path).to_dict("records")
    assert row["total_s"] == 0.9
    assert math.isnan(row["peak_rss_mib"])
    assert math.isnan(row["cpu_s"])
    (row,) = cost_table({"plan": [short, write(tmp_path, "plan/b", 3, 50, 2)]}, tmp_path).to_dict("records")
    assert (row["peak_rss_mib"], row["peak"], row["cpu_s"]) == (50, "b", 2)


def test_what_snakemake_writes_is_read(tmp_path):
    """A job that holds 200 MiB for two seconds."""
    hold = "held = bytearray(b'x') * (200 << 20); import time; time.sleep(2)"
    (tmp_path / "hold.py").write_text(hold)
    (tmp_path / "Snakefile").write_text(
        'rule hold:\n    output: "done"\n    benchmark: "costs/hold/one.tsv"\n    shell: "python hold.py; touch done"\n'
    )
    done = snakemake(tmp_path, "--workflow-profile", "none", snakefile=tmp_path / "Snakefile")
    assert done.returncode == 0, done.stderr
    table = cost_table({"hold": [tmp_path / "costs/hold/one.tsv"]}, tmp_path / "costs")
    row = table.iloc[0]
    assert 2 <= row["total_s"] < 60
    assert 200 <= row["peak_rss_mib"] < 300
