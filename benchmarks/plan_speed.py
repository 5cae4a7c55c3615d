"""How fast is a model under plan files, from short prompts to long ones, beside SDPA?

    python benchmarks/plan_speed.py FOLDER PLAN.json ... --lengths 64 512 2048 4096 8000

FOLDER is a model in Hugging Face format. Prefill and decoding of held-out text take turns with SDPA, which is timed
twice over, as in the study's own timing stage, but without eager attention, whose maps take minutes at 8,000 tokens.
`policy` in the table is the name of a plan's file.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from sinkstudy.attention import Plan
from sinkstudy.evaluation.benchmark import measure, prepare, usable_lengths, windows
from sinkstudy.evaluation.timing import Rounds
from sinkstudy.evaluation.variants import AGAIN, SDPA, Variant
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.store.tables import write_table

TEXT = "texts/heldout.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 2048, 4096, 8000])
    parser.add_argument("--phases", nargs="+", default=["prefill", "decode"])
    parser.add_argument("--seconds", type=float, default=60, help="of timing at most, for each length and phase")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    loaded, plans = load_model(ModelSpec(source=given.folder)), {path.stem: Plan.load(path) for path in given.plans}
    token_ids = tokenize(loaded, Path(TEXT).read_text(encoding="utf-8"), TEXT)
    # Plans are also timed at lengths that they leave alone, because their hooks run there all the same.
    planned = [Variant(plan.strategy, name, plan, "projections") for name, plan in plans.items()]
    rounds, rows = Rounds(5, 0.01, given.seconds), []
    for n in usable_lengths(loaded.model, given.folder, len(token_ids), given.lengths):
        inputs = windows(token_ids, n, 1).to(loaded.model.device)
        with torch.inference_mode():
            prepared = prepare(loaded.model, inputs, [SDPA, AGAIN, *planned])
            for phase in given.phases:
                rows += measure(loaded.model, "", inputs, prepared, phase, rounds)
        table = pd.DataFrame(rows).drop(columns="model").dropna(axis=1, how="all")
        write_table(table, given.out)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
