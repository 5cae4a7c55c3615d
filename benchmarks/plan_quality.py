"""What does a plan cost, beside as many heads with the same windows drawn at random?

    python benchmarks/plan_quality.py FOLDER PLAN.json --lengths 2048 4096

FOLDER is a model in Hugging Face format. Every length is read from as many places of the held-out text as fit, up to
three. Heads are drawn anywhere in the model, or in the layers of the plan, as many in each. The plan is in force at
every length, also where it would leave a prompt alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sinkstudy.attention import Plan
from sinkstudy.evaluation.quality import compare, logits_of
from sinkstudy.evaluation.skipping import random_heads, with_heads
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.store.tables import write_table

TEXT, PLACES = "texts/heldout.txt", 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("plan")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--draws", type=int, default=2, help="of random heads of each kind, for each stretch of text")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    loaded, plan = load_model(ModelSpec(source=given.folder)), replace(Plan.load(given.plan), min_tokens=None)
    token_ids = torch.tensor([tokenize(loaded, Path(TEXT).read_text(encoding="utf-8"), TEXT)])
    heads, rng, rows = loaded.model.config.get_text_config().num_attention_heads, np.random.default_rng(0), []
    layers = loaded.model.config.get_text_config().num_hidden_layers
    for n in given.lengths:
        places = min(PLACES, token_ids.shape[1] // n)
        for start in np.linspace(0, token_ids.shape[1] - n, places).astype(int).tolist():
            ids = token_ids[:, start : start + n]
            before = logits_of(loaded.model, ids)
            for chosen_by, one in _plans(plan, layers, heads, given.draws, rng):
                found = compare(before, logits_of(loaded.model, ids, one), ids)
                row = {"n_tokens": n, "start": start, "chosen_by": chosen_by, "heads_replaced": one.replaced}
                rows.append(row | vars(found))
    table = pd.DataFrame(rows)
    write_table(table, given.out)
    print(table.groupby(["n_tokens", "chosen_by"], sort=False)[["kl", "perplexity_ratio"]].mean().to_string())


def _plans(plan: Plan, layers: int, heads: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[str, Plan]]:
    yield "plan", plan
    for _ in range(draws):
        yield "random, anywhere", _anywhere(plan, layers, heads, rng)
        yield "random, in the same layers", with_heads(plan, random_heads(plan, heads, rng))


def _anywhere(plan: Plan, layers: int, heads: int, rng: np.random.Generator) -> Plan:
    """As many heads of the whole model, which take over the windows."""
    widths = [plan.window_of(layer, head) for layer, of in plan.heads.items() for head in of]
    windows: dict[int, dict[int, int]] = {}
    for place, width in zip(rng.permutation(layers * heads)[: len(widths)].tolist(), widths, strict=True):
        windows.setdefault(place // heads, {})[place % heads] = width
    return replace(plan, heads={layer: list(of) for layer, of in windows.items()}, windows=windows)


if __name__ == "__main__":
    main()
