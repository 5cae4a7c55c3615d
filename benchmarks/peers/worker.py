"""One environment's share of the comparison, started by run.py: worker.py ENVIRONMENT WHAT TASKS OUT ROUNDS LENGTHS."""

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import torch
from measure import AGAIN, PATTERN, UNMODIFIED, quality, seconds
from transformers import AutoModelForCausalLM
from transformers.utils import logging

METHODS = {"sinkstudy": "ours", "kvpress": "presses"}
# Peers are timed at one level, because their time depends little on how much they drop.
_TIMED_LEVEL = 0.5


def main() -> None:
    environment, what, tasks, out, rounds, *lengths = sys.argv[1:]
    given = json.loads(Path(tasks).read_text(encoding="utf-8")) | {"pattern": Path(tasks).with_name(PATTERN)}
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(given["folder"], dtype=torch.float32, attn_implementation="sdpa")
    methods = importlib.import_module(METHODS[environment]).methods
    rows = []
    for n in lengths:
        of_length = given["tasks"][n]
        found = methods(model, given, n)
        if what == "quality":
            made = quality(model, [UNMODIFIED, *found], of_length)
        else:
            timed = [one for one in found if environment == "sinkstudy" or one.level == _TIMED_LEVEL]
            made = seconds(model, [UNMODIFIED, AGAIN, *timed], of_length[0], int(rounds))
        rows += [{"environment": environment, "n_tokens": int(n), **row} for row in made]
        pd.DataFrame(rows).to_csv(out, index=False)


if __name__ == "__main__":
    main()
