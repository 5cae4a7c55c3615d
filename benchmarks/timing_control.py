"""Does the timing stage claim a gain where there is none?

    python benchmarks/timing_control.py FOLDER              # of a model in Hugging Face format

Five timing stages of the default study (lengths, batches, rounds and time of config.yaml) of plans that are cut down
to nothing: every way is SDPA itself, passed off as one that replaces a head without harm under a generous ceiling.
What the findings would claim of each stage is printed, and every cell's fastest way goes to `timing_control.csv`.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
import yaml

from sinkstudy.evaluation.benchmark import measure, prepare, usable_lengths, windows
from sinkstudy.evaluation.timing import Rounds
from sinkstudy.evaluation.variants import AGAIN, EAGER, SDPA, Variant
from sinkstudy.findings.replacing import CELL, PHASES, harmless_ways, worth_by_length, worth_replacing
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ["stage", *CELL, "ways", "rounds", "speedup_vs_sdpa", "speedup_low", "speedup_high", "again_high", "claimed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a model in Hugging Face format")
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", help="instead of those of config.yaml")
    parser.add_argument("--ways", type=int, default=4, help="so many copies of SDPA per cell")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    settings = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["benchmark"]
    loaded = load_model(ModelSpec(source=arguments.folder))
    token_ids = tokenize(loaded, (ROOT / settings["text"]).read_text(encoding="utf-8"), settings["text"])
    lengths = usable_lengths(loaded.model, arguments.folder, len(token_ids), arguments.lengths or settings["lengths"])
    rounds = Rounds(settings["repeats"], settings["precision"], settings["seconds_per_cell"])
    rows = []
    for stage in range(1, arguments.stages + 1):
        table = pd.concat(
            [
                stage_cell(loaded.model, windows(token_ids, n, batch).to(loaded.model.device), arguments.ways, rounds)
                for n in lengths
                for batch in settings["batches"]
            ]
        )
        whole, parts = worth_replacing(table), worth_by_length(table)
        claims = [where for where, verdict in parts if verdict.holds]
        print(f"stage {stage} claims {', '.join(claims) or 'nothing'}: {whole.reason}", flush=True)
        for (phase, n, _), cell in harmless_ways(table).groupby(CELL, sort=False):
            fastest = cell.loc[cell["speedup_vs_sdpa"].idxmax()].to_dict()
            claimed = f"{PHASES[phase]} at {n} tokens" in claims
            rows.append(fastest | {"stage": stage, "ways": len(cell), "claimed": claimed})
        pd.DataFrame(rows)[SHOWN].to_csv(arguments.out, index=False, float_format="%.4g")


@torch.inference_mode()
def stage_cell(model: torch.nn.Module, inputs: torch.Tensor, ways: int, rounds: Rounds) -> pd.DataFrame:
    """Both phases of one length and batch."""
    copies = [Variant("sdpa", f"nothing {i}") for i in range(1, ways + 1)]
    prepared = prepare(model, inputs, [EAGER, SDPA, AGAIN, *copies])
    cells = [pd.DataFrame(measure(model, "", inputs, prepared, phase, rounds)) for phase in ("prefill", "decode")]
    table = pd.concat(cells, ignore_index=True)
    copied = table["policy"].isin([one.policy for one in copies])
    return table.assign(heads_replaced=copied.astype(int), ceiling=1.0 + copied)


if __name__ == "__main__":
    main()
