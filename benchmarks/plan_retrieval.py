"""How many facts of a long text does a model still find under plan files?

    python benchmarks/plan_retrieval.py FOLDER PLAN.json [PLAN.json ...] --lengths 2048 4096

FOLDER is a model in Hugging Face format. The held-out text tells facts and is asked for them, as in the study's own
quality stage. Plans are named after their files, and are in force at every length, also where they would leave a prompt
alone.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from sinkstudy.attention import Plan
from sinkstudy.evaluation.retrieval import retrieval_table
from sinkstudy.evaluation.variants import Variant
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.store.tables import write_table

TEXT = "texts/heldout.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("plans", type=Path, nargs="+")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--cases", type=int, default=50, help="facts told at each depth")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    loaded = load_model(ModelSpec(source=given.folder))
    token_ids = tokenize(loaded, Path(TEXT).read_text(encoding="utf-8"), TEXT)
    plans = {path.stem: replace(Plan.load(path), min_tokens=None) for path in given.plans}
    variants = [Variant(plan.strategy, name, plan, "projections") for name, plan in plans.items()]
    sizes = given.lengths, given.cases
    table = retrieval_table(loaded.model, "", loaded.piece, token_ids, variants, *sizes).drop(columns="model")
    write_table(table, given.out)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
