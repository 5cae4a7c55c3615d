"""From captures to statistics with many prompts of the toy: time on one core and on two, and peak memory of any job;
and the time and memory that planning takes.

    python benchmarks/many_prompts.py FOLDER [--prompts 1000 10000] [--planned 100000]

makes its studies in FOLDER, which needs 140 kB of disk per prompt, and keeps their captures for the next run. Prompts
are pieces of the held-out text of 128 tokens, which is 127 characters to the toy. The table is many_prompts.csv, with
Snakemake's own start in its seconds.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
CHARACTERS = 127
SETS = ("even", "odd")
STAGES = ("reduced", "correlation", "statistics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--planned", type=int, default=100_000)
    arguments = parser.parse_args()
    rows = [planned(arguments.folder / "planned", arguments.planned)]
    for count in arguments.prompts:
        rows += measured(arguments.folder / str(count), count)
    table = pd.DataFrame(rows)
    table.to_csv(ROOT / "benchmarks/many_prompts.csv", index=False, float_format="%.4g")
    print(table.to_string())


def write_study(folder: Path, count: int, models: int) -> None:
    """A configuration whose captures hold no maps, and prompts that take turns between two sets."""
    folder.mkdir(parents=True, exist_ok=True)
    text = " ".join((ROOT / "texts/heldout.txt").read_text(encoding="utf-8").split()).replace('"', "'")
    starts = np.random.default_rng(0).integers(0, len(text) - CHARACTERS, count)
    rows = [f"p{i}\t{SETS[i % 2]}\t{text[s : s + CHARACTERS].strip():.<{CHARACTERS}}" for i, s in enumerate(starts)]
    (folder / "prompts.tsv").write_text("\n".join(["prompt\tset\ttext", *rows]) + "\n", encoding="utf-8")
    toy = {"source": str(ROOT / "models/reference")}
    settings = {
        "models": {f"toy{i}": toy | ({"random_weights": i} if i else {}) for i in range(models)},
        "prompts": "prompts.tsv",
        "capture": {"maps_max_tokens": 0},
        "benchmark": {"text": str(ROOT / "texts/heldout.txt")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def snakemake(folder: Path, *told: str) -> dict[str, float]:
    """Run it, and tell the seconds it took by the clock and of processors, and the most memory that it held, MiB."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *told], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"snakemake {' '.join(told)} failed in {folder}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}


def planned(folder: Path, count: int) -> dict[str, object]:
    write_study(folder, count, models=5)
    return {"prompts": count, "stage": "plan, 5 models"} | snakemake(folder, "-n", "-q", "all", "--cores", "2")


def measured(folder: Path, count: int) -> list[dict[str, object]]:
    """The captures on two cores, then what is made of them on two and on one."""
    results, rows = folder / "results", []
    if not (folder / "config.yaml").exists():
        write_study(folder, count, models=1)
    targets = ["results/correlation/toy0.csv", "results/definitions/toy0.csv"]
    cost = snakemake(folder, "--cores", "2", "--until", "capture", "--", *targets)
    rows.append({"prompts": count, "stage": "capture", "cores": 2} | cost | cost_of(results, "capture"))
    for cores in (2, 1):
        for name in (*STAGES, "definitions"):
            shutil.rmtree(results / name, ignore_errors=True)
            shutil.rmtree(results / "costs" / name, ignore_errors=True)
        cost = snakemake(folder, "--cores", str(cores), "--", *targets)
        about = {"prompts": count, "stage": "captures to statistics", "cores": cores}
        rows.append(about | cost | cost_of(results, *STAGES))
    return rows


def cost_of(results: Path, *stages: str) -> dict[str, object]:
    """How many jobs of these stages ran, and the most memory that one held, as Snakemake saw it every half second."""
    files = [path for stage in stages for path in (results / "costs" / stage).rglob("*.tsv")]
    seen = pd.concat([pd.read_csv(path, sep="\t", na_values="-") for path in files])
    return {"jobs": len(files), "peak_mib": seen["max_rss"].max()}


if __name__ == "__main__":
    main()
