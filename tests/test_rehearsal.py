"""The rehearsal's own command, in miniature; and that its check can fail."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from study import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from rehearsal import SHAPES, check, planted_heads


def rehearse(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks/rehearsal.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def scores_of(planted: np.ndarray) -> pd.DataFrame:
    rows = [("p", 20, *where, 0.95 if planted[where] else 0.1) for where in np.ndindex(planted.shape)]
    return pd.DataFrame(rows, columns=["prompt", "n_tokens", "layer", "head", "excess_score"])


@pytest.mark.parametrize("layer", [0, 2])
def test_one_head_that_differs_from_what_was_planted_fails_the_rehearsal(layer):
    planted = planted_heads(SHAPES["small"])
    assert f"all 24 heads as planted ({planted.sum()} sinks) on each of 1 prompts" == check(scores_of(planted), planted)
    other = planted.copy()
    other[layer, 5] ^= True
    with pytest.raises(SystemExit, match="1 of 24 heads differ"):
        check(scores_of(other), planted)


def test_what_is_planted_follows_the_first_layer_more_often_than_the_base_rate():
    planted = planted_heads(SHAPES["8b"])
    assert planted.shape == (32, 32)
    assert planted[0].sum() == 8
    assert planted[1:, planted[0]].mean() > 0.7 > 0.5 > planted[1:].mean() > 0.3


def test_a_folder_inside_the_repository_is_refused():
    done = rehearse(str(ROOT / "rehearsal"))
    assert done.returncode == 2
    assert "is inside the repository" in done.stderr
    assert not (ROOT / "rehearsal").exists()


def test_the_page_shows_the_costs_that_were_measured():
    costs = pd.read_csv(ROOT / "benchmarks/rehearsal_8b_cpu.csv")
    lines = (ROOT / "docs/rehearsal.md").read_text(encoding="utf-8").splitlines()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert len(shown) == len(costs)
    for (stage, jobs, time, longest, processor, memory), (_, row) in zip(shown, costs.iterrows(), strict=True):
        assert (stage, jobs) == (row["stage"], str(row["jobs"]))
        assert (time, longest) == (f"{row['total_s']:.1f} s", f"{row['longest_s']:.1f} s")
        assert processor == f"{row['cpu_s']:.0f} s"
        unknown = pd.isna(row["peak_rss_mib"])
        assert memory == ("too short to sample" if unknown else f"{row['peak_rss_mib']:.0f} MiB")


@pytest.mark.slow
def test_the_small_rehearsal_finds_every_planted_head_and_writes_its_costs(tmp_path):
    done = rehearse(str(tmp_path / "rehearsal"), "--shape", "small")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all 24 heads as planted" in done.stdout
    assert len(list((tmp_path / "rehearsal/model").glob("model-*.safetensors"))) > 1
    assert "## What it cost" in (tmp_path / "rehearsal/results/findings.md").read_text()
