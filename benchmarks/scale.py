"""How the stages past the captures grow with prompts and heads: processor seconds, memory and bytes of each.

    python benchmarks/scale.py                                          # writes benchmarks/scale.csv
    python benchmarks/scale.py --shapes 135m 8b --prompts 100 1000      # takes 4 GB of disk for a while

Captures that no model made, of 128 tokens per prompt, go through the workflow's own rules on one core. `cpu_s` is
Snakemake's own start and the stage, so that the difference between two numbers of prompts is the stage's; `peak_mb` is
what Snakemake saw of the job, `mb` the size of what the stage wrote.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from sinkstudy.measures.captured import Capture
from sinkstudy.prompts import Prompt, read_prompts, shards
from sinkstudy.store import write_capture

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"135m": (30, 9), "1b": (16, 32), "8b": (32, 32)}  # layers, heads
TOKENS, TOKENS_PER_JOB = 128, 8192
KEY_CLASSES = ("position_0", "position_1", "position_2", "position_3", "self", "previous")
# These targets make Snakemake run one stage after another. With many prompts a long table is a folder and no CSV.
STAGES = {"reduced": "results/scores/made_up --until reduced", "scores": "results/scores/made_up"}
STAGES |= {name: f"results/{name}/made_up.csv" for name in ("heads", "mechanism", "predictors", "heldout")}
STAGES |= {"correlation": "results/correlation/made_up.csv", "statistics": "results/lengths/made_up"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["135m"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    rows = []
    for shape in arguments.shapes:
        for count in arguments.prompts:
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(Path(folder), shape, count)
            print(pd.DataFrame(rows[-len(STAGES) - 1 :]).to_string(index=False), file=sys.stderr, flush=True)
    pd.DataFrame(rows).to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4g")


def measure(folder: Path, shape: str, count: int) -> list[dict]:
    """Rows of one study."""
    with (folder / "prompts.tsv").open("w", encoding="utf-8", newline="") as file:
        prompts = [(f"p{i}", ("short", "long")[i % 2], f"Prompt {i} " + "word " * 100) for i in range(count)]
        csv.writer(file, delimiter="\t").writerows([("prompt", "set", "text"), *prompts])
    settings = {
        "models": {"made_up": {"source": str(ROOT / "models/reference")}},
        "prompts": "prompts.tsv",
        "capture": {"tokens_per_job": TOKENS_PER_JOB},
        "benchmark": {"text": str(ROOT / "texts/heldout.txt")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    rng = np.random.default_rng(0)
    for shard, part in shards(read_prompts(folder / "prompts.tsv"), TOKENS_PER_JOB).items():
        path = folder / f"results/captures/made_up/{shard}.h5"
        write_shard(path, settings["models"]["made_up"]["source"], part, SHAPES[shape], rng)
    kept = size(folder)
    about = {"shape": shape, "heads": np.prod(SHAPES[shape]), "prompts": count}
    stages = [run(folder, stage, target) for stage, target in STAGES.items()]
    return [about | row for row in [{"stage": "captures", "mb": kept}, *stages]]


def write_shard(path: Path, source: str, prompts: list[Prompt], shape: tuple[int, int], rng: np.random.Generator):
    """Masses as noisy as a model's: every head of every prompt around a level of its own."""
    layers, heads = shape
    attributes = {"model": "made_up", "source": source, "dtype": "float32", "bos": "auto"}
    with write_capture(path, attributes, KEY_CLASSES, prompts) as writer:
        for prompt in prompts:
            level = rng.beta(0.5, 0.5, (layers, heads, 1, 1))
            mass = (level * rng.random((layers, heads, TOKENS, len(KEY_CLASSES)))).astype(np.float32)
            mass[:, :, 0, 0] = 1
            writer.add(made_up(prompt, mass))


def made_up(prompt: Prompt, mass: np.ndarray) -> Capture:
    return Capture(
        prompt=prompt.id,
        set=prompt.set,
        layers=np.arange(len(mass)),
        token_ids=np.zeros(TOKENS),
        tokens=["a"] * TOKENS,
        sink_mass=mass[..., 0],
        key_mass=mass,
        output_norm=np.ones(mass.shape[:2]),
    )


def run(folder: Path, stage: str, target: str) -> dict[str, float | str]:
    before, kept = resource.getrusage(resource.RUSAGE_CHILDREN), size(folder)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1", "--quiet"]
    subprocess.run([*command, "all", "--directory", str(folder), *target.split()], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    costs = (folder / "results/costs" / stage).rglob("*.tsv")
    peak = max(pd.read_csv(path, sep="\t", na_values="-")["max_rss"][0] for path in costs)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"stage": stage, "mb": size(folder) - kept, "cpu_s": used, "peak_mb": peak}


def size(folder: Path) -> float:
    files = (folder / "results").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
