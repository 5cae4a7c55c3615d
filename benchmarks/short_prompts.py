"""Prompts per second for many short prompts: ours, all tables included, beside the loop everybody writes.

    python benchmarks/short_prompts.py                # writes benchmarks/short_prompts.csv

The loop runs each prompt by itself with output_attentions and scores head by head in Python, in one process with all
cores for PyTorch. It is timed twice: as usually written, for one score per head and no file; and for the same tables
as ours (every prefix length, permutation tests), with NumPy over queries and permutations. Ours does what the
workflow does: captures in shards, one process per core, then the score tables in one job, length and correlation
tables in another, each reading the HDF5 files anew; with and without storing the whole maps. Processes are started and
models loaded before the clock runs. All in turn, after a warm-up.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sinkstudy.capture.recording import record
from sinkstudy.models.loading import LoadedModel, load_model
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import Prompt
from sinkstudy.stats.correlation import correlation_tables
from sinkstudy.stats.curves import curve_table, length_tables
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import score_tables
from sinkstudy.store import read_captures
from sinkstudy.store.tables import write_table

ROOT = Path(__file__).parent.parent
THRESHOLDS = [0.3, 0.8, 0.9]
NEEDS = Needs(THRESHOLDS, [2, 5, 10, 16, 24])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    prompts = short_prompts(arguments.prompts)
    rows = []
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        ways = {
            "sinkstudy": partial(ours, pool, 0),
            "sinkstudy, maps stored": partial(ours, pool, 128),
            "plain loop": plain_loop,
            "plain loop, same tables": plain_tables,
        }
        for turn in range(-1, arguments.rounds):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    way(prompts, Path(folder))
                    seconds = time.perf_counter() - start
                rate = len(prompts) / seconds
                rows.append({"round": turn, "method": name, "seconds": seconds, "prompts_per_s": rate})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).query("round >= 0")  # the first is the warm-up
    rates = table.pivot(index="round", columns="method", values="prompts_per_s")
    for name, other in product(list(ways)[:2], list(ways)[2:]):
        ratio = rates[name] / rates[other]
        print(f"{name} over {other}: median {ratio.median():.2f}, from {ratio.min():.2f} to {ratio.max():.2f}")
    table.to_csv(ROOT / "benchmarks/short_prompts.csv", index=False, float_format="%.5g")


@cache
def model() -> LoadedModel:
    """The reference model, once per process."""
    return load_model(ModelSpec(source=str(ROOT / "models/reference"), device="cpu"))


def short_prompts(count: int) -> list[Prompt]:
    """Pieces of the held-out text of 4 to 29 characters: 5 to 30 tokens with BOS."""
    text = (ROOT / "texts/heldout.txt").read_text(encoding="utf-8")
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, len(text) - 30, count), rng.integers(4, 30, count)
    return [Prompt(f"p{i}", "short", text[s : s + n]) for i, (s, n) in enumerate(zip(starts, lengths, strict=True))]


def ours(pool: ProcessPoolExecutor, maps_max_tokens: int, prompts: list[Prompt], folder: Path) -> None:
    size = -(-len(prompts) // pool._max_workers)
    shards = {folder / f"{start}.h5": prompts[start : start + size] for start in range(0, len(prompts), size)}
    wait(pool.submit(capture, path, shard, maps_max_tokens) for path, shard in shards.items())
    wait(pool.submit(table, list(shards), folder) for table in (scores, lengths_and_correlations))


def wait(jobs: Iterable[Future]) -> None:
    for job in list(jobs):
        job.result()


def capture(path: Path, shard: list[Prompt], maps_max_tokens: int) -> None:
    record(path, "reference", model(), shard, maps_max_tokens)


def scores(paths: list[Path], folder: Path) -> None:
    write_table(score_tables(reduced(read_captures(paths), NEEDS), "reference", 0.9), folder / "scores.csv")


def lengths_and_correlations(paths: list[Path], folder: Path) -> None:
    found, resampling = reduced(read_captures(paths), NEEDS), Resampling(bootstrap=1000, permutations=1000, seed=0)
    write_table(length_tables(found, "reference"), folder / "lengths.csv")
    curves = curve_table(found, "reference", resampling)
    correlations = correlation_tables(found, "reference", NEEDS.lengths, resampling, curves)
    write_table(correlations, folder / "correlation.csv")


@torch.inference_mode()
def eager_maps(prompt: Prompt) -> np.ndarray:
    """(layer, head, query, key), one prompt at a time."""
    ids = model().tokenizer(prompt.text, return_tensors="pt").input_ids
    return np.stack([layer[0].numpy() for layer in model().model(ids, output_attentions=True).attentions])


def plain_loop(prompts: list[Prompt], _: Path) -> None:
    model().model.set_attn_implementation("eager")
    rows = []
    for prompt in prompts:
        for layer, maps in enumerate(eager_maps(prompt)):
            for head, weights in enumerate(maps):
                score = weights[:, 0].sum() / weights.sum()
                rows.append({"prompt": prompt.id, "layer": layer, "head": head, "score": score, "sink": score >= 0.9})
    pd.DataFrame(rows)


def plain_tables(prompts: list[Prompt], folder: Path) -> None:
    model().model.set_attn_implementation("eager")
    rng = np.random.default_rng(0)
    rows, lengths, correlations = [], [], []
    for prompt in prompts:
        maps = eager_maps(prompt)
        n = maps.shape[-1]
        score = np.empty((*maps.shape[:2], n))
        for layer, head in np.ndindex(score.shape[:2]):
            weights = maps[layer, head]
            score[layer, head] = np.cumsum(weights[:, 0]) / np.cumsum(weights.sum(1))
            rows.append({"prompt": prompt.id, "layer": layer, "head": head, "score": score[layer, head, -1]})
        for threshold in THRESHOLDS:
            sinks = score >= threshold
            for k in range(n):
                fraction, mean = sinks[..., k].mean(), score[..., k].mean()
                lengths.append({"prompt": prompt.id, "n": k + 1, "threshold": threshold, "f": fraction, "mean": mean})
            first, later = sinks[0, :, -1], sinks[1:, :, -1]
            observed, drawn = (first & later).sum(), np.zeros(1000)
            for layer in later:
                drawn += (first & rng.permuted(np.tile(layer, (1000, 1)), axis=1)).sum(1)
            correlations.append({"prompt": prompt.id, "share": observed, "p": (drawn >= observed).mean()})
    for name, part in {"scores": rows, "lengths": lengths, "correlation": correlations}.items():
        pd.DataFrame(part).to_csv(folder / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
