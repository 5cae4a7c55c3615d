"""Prompts per second for many short prompts: ours, all tables included, beside the loop everybody writes.

    python benchmarks/short_prompts.py                # writes benchmarks/short_prompts.csv

The loop runs each prompt by itself with output_attentions and scores head by head in Python. Ours writes the HDF5
capture with maps, and the score, length and correlation tables. Both in one process, in turn, after a warm-up.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sinkstudy.models import LoadedModel, ModelSpec, load_model
from sinkstudy.prompts import Prompt
from sinkstudy.recording import record
from sinkstudy.resampling import Resampling
from sinkstudy.scores import length_tables, score_tables
from sinkstudy.stats import correlation_table
from sinkstudy.store import read_captures
from sinkstudy.tables import write_table

ROOT = Path(__file__).parent.parent
THRESHOLDS = [0.3, 0.8, 0.9]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    loaded = load_model(ModelSpec(source=str(ROOT / "models/reference"), device="cpu"))
    prompts = short_prompts(arguments.prompts)
    ways = {"sinkstudy": ours, "plain loop": plain_loop}
    for way in ways.values():
        way(loaded, prompts[:50])
    rows = []
    for turn in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(loaded, prompts)
            seconds = time.perf_counter() - start
            rows.append({"round": turn, "method": name, "seconds": seconds, "prompts_per_s": len(prompts) / seconds})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    rates = table.pivot(index="round", columns="method", values="prompts_per_s")
    ratio = rates["sinkstudy"] / rates["plain loop"]
    print(f"ratio: median {ratio.median():.2f}, from {ratio.min():.2f} to {ratio.max():.2f}")
    table.to_csv(ROOT / "benchmarks/short_prompts.csv", index=False, float_format="%.5g")


def short_prompts(count: int) -> list[Prompt]:
    """Pieces of the held-out text of 4 to 29 characters: 5 to 30 tokens with BOS."""
    text = (ROOT / "benchmarks/heldout.txt").read_text(encoding="utf-8")
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, len(text) - 30, count), rng.integers(4, 30, count)
    return [Prompt(f"p{i}", "short", text[s : s + n]) for i, (s, n) in enumerate(zip(starts, lengths, strict=True))]


def ours(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "capture.h5"
        record(path, "reference", loaded, prompts, maps_max_tokens=128)
        captures = list(read_captures([path]))
        write_table(score_tables(captures, "reference", 0.9), folder / "scores.csv")
        write_table(length_tables(captures, "reference", THRESHOLDS), folder / "lengths.csv")
        resampling = Resampling(bootstrap=1000, permutations=1000, seed=0)
        table = correlation_table(captures, "reference", THRESHOLDS, [2, 5, 10, 16, 24], resampling)
        write_table(table, folder / "correlation.csv")


@torch.inference_mode()
def plain_loop(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    model = loaded.model
    model.set_attn_implementation("eager")
    rows = []
    for prompt in prompts:
        ids = loaded.tokenizer(prompt.text, return_tensors="pt").input_ids
        for layer, attention in enumerate(model(ids, output_attentions=True).attentions):
            for head in range(attention.shape[1]):
                weights = attention[0, head]
                score = (weights[:, 0].sum() / weights.sum()).item()
                rows.append({"prompt": prompt.id, "layer": layer, "head": head, "score": score, "sink": score >= 0.9})
    pd.DataFrame(rows)
    model.set_attn_implementation("sdpa")


if __name__ == "__main__":
    main()
