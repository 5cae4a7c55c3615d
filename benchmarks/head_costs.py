"""Estimated costs of heads beside what replacing each alone is measured to cost: does the estimate rank them?

    python benchmarks/head_costs.py MODEL [--tokens 512] [--window 64] [--heads 60] [--out FILE.csv]

MODEL is a directory in Hugging Face format. Heads are drawn at random; both sides read the same stretch of
texts/heldout.txt.
"""

import argparse
from pathlib import Path

import torch
from scipy.stats import spearmanr

from sinkstudy.attention import Plan
from sinkstudy.evaluation.head_costs import head_costs
from sinkstudy.evaluation.quality import compare, logits_of
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.store.tables import write_table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--heads", type=int, default=60)
    parser.add_argument("--out", default="benchmarks/head_costs_smollm2.csv")
    given = parser.parse_args()
    loaded = load_model(ModelSpec(source=given.model))
    text = Path("texts/heldout.txt").read_text(encoding="utf-8")
    ids = torch.tensor([tokenize(loaded, text, "held-out")[: given.tokens]], device=loaded.model.device)
    plan = {"strategy": "sink_window", "window": given.window}
    drawn = head_costs(loaded.model, ids, [Plan(**plan)]).sample(given.heads, random_state=0).sort_index()
    reference, measured = logits_of(loaded.model, ids), []
    for layer, head in zip(drawn["layer"], drawn["head"], strict=True):
        measured.append(compare(reference, logits_of(loaded.model, ids, Plan(heads={layer: [head]}, **plan)), ids).kl)
    drawn = drawn.assign(measured=measured, tokens=given.tokens, window=given.window)
    write_table(drawn, given.out)
    print(f"Spearman over {len(drawn)} heads: {spearmanr(drawn['cost'], measured).statistic:.3f}")


if __name__ == "__main__":
    main()
