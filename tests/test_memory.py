"""Peak memory of the stages past the captures: a study of ten times the shards must not need more."""

import re
from pathlib import Path

import numpy as np
import pytest
from made_up_captures import capture_of
from study import SMALL, snakemake, write_study

from sinkstudy.prompts import Prompt, read_prompts, shards
from sinkstudy.store import write_capture
from sinkstudy.store.captures import CaptureWriter

pytestmark = pytest.mark.slow

SHARDS = (4, 40)
PROMPTS_PER_SHARD = 16
TOKENS_PER_SHARD = PROMPTS_PER_SHARD * 6  # each text counts as six
LAYERS = HEADS = 16
LENGTHS = (24, 64, 128)  # in tokens; prompts take turns
KEY_CLASSES = ("position_0", "position_1", "position_2", "position_3", "self", "previous")
ALLOWED = 1.2
STAGES = {
    "reduced": "results/reduced/made_up/00000.h5",
    "scores": "results/scores/made_up.csv",
    "heads": "results/heads/made_up.csv",
    "correlation": "results/correlation/made_up.csv",
    "statistics": "results/lengths/made_up.csv",
    "mechanism": "results/mechanism/made_up.csv",
    "heldout": "results/heldout/made_up.csv",
    "simulation": "results/simulation/fitted.csv",
    "plan": "results/plans/made_up/consistent.json",
    "comparison": "results/comparison.csv",
    "fig_lengths": "results/figures/lengths_made_up.png",
    "fig_maps": "results/figures/maps_made_up.png",
}
# Put where Python starts from: every job notes its script and the most memory it ever held, as the kernel knows it.
NOTE = """
import atexit, os, re, sys

def note():
    script = re.search(r"[.](\\w+)[.]py$", sys.argv[0])
    if script:
        with open("/proc/self/status") as status:
            peak = re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]
        with open(os.path.join(os.environ["PEAKS"], script[1]), "w") as file:
            file.write(peak)

atexit.register(note)
"""


def write_captures(folder: Path) -> None:
    """Captures that no model made: every head of every prompt has a level of its own, and one prompt has maps."""
    rng = np.random.default_rng(0)
    source = SMALL["models"]["reference"]["source"]
    attributes = {"model": "made_up", "source": source, "dtype": "float32", "bos": "auto"}
    for shard, prompts in shards(read_prompts(folder / "prompts.tsv"), TOKENS_PER_SHARD).items():
        path = folder / f"results/captures/made_up/{shard}.h5"
        with write_capture(path, attributes, KEY_CLASSES, prompts) as writer:
            for prompt in prompts:
                write_prompt(writer, prompt, rng.beta(0.5, 0.5, (LAYERS, HEADS)))


def write_prompt(writer: CaptureWriter, prompt: Prompt, levels: np.ndarray) -> None:
    n = int(prompt.text.split()[-2])
    for _ in range(LAYERS) if n == min(LENGTHS) else ():
        writer.add_map(prompt.id, np.tril(np.ones((HEADS, n, n))))
    mass = np.repeat(levels[:, :, None, None], n, axis=2).repeat(len(KEY_CLASSES), axis=3)
    mass[:, :, 0, 0] = 1
    writer.add(capture_of(prompt, mass))


def peaks_of(folder: Path, count: int) -> dict[str, int]:
    """The stages of a study of so many shards, run by the workflow: peak resident memory of each, kB."""
    settings = {
        "models": {"made_up": SMALL["models"]["reference"]},
        "prompts": "prompts.tsv",
        "capture": {"tokens_per_job": TOKENS_PER_SHARD},
        "statistics": {"tokens_per_job": 4 * TOKENS_PER_SHARD},
        "simulation": {"fitted": {"layers": 4, "heads": 4, "lengths": [5, 10], "fitted_to": "made_up"}},
        "benchmark": SMALL["benchmark"] | {"consistent_share": 0.2},
    }
    prompts = [
        (f"p{i}", ("short", "long")[i % 2], f"A prompt of {LENGTHS[i % len(LENGTHS)]} tokens")
        for i in range(count * PROMPTS_PER_SHARD)
    ]
    write_study(folder, settings, prompts)
    write_captures(folder)
    (folder / "start").mkdir()
    (folder / "start/sitecustomize.py").write_text(NOTE)
    (folder / "peaks").mkdir()
    noting = {"PYTHONPATH": str(folder / "start"), "PEAKS": str(folder / "peaks")}
    done = snakemake(folder, "--cores", "2", *STAGES.values(), environment=noting)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("^capture ", done.stdout + done.stderr, re.M)
    return {path.name: int(path.read_text()) for path in (folder / "peaks").iterdir()}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> dict[int, dict[str, int]]:
    return {count: peaks_of(tmp_path_factory.mktemp(f"{count}_shards"), count) for count in SHARDS}


@pytest.mark.parametrize("stage", STAGES)
def test_ten_times_the_shards_need_hardly_more_memory(peaks, stage):
    few, many = (peaks[count][stage] for count in SHARDS)
    assert many <= ALLOWED * few, f"{few} kB with {SHARDS[0]} shards, {many} kB with {SHARDS[1]}"
