"""How fast is a prefill under a plan file beside SDPA, on a machine whose speed drifts while a prefill runs?

    python benchmarks/plan_prefill.py FOLDER PLAN.json --lengths 4096 8000

FOLDER is a model in Hugging Face format. Where a prefill takes seconds and other tenants of a machine come and go in
less, whole prefills that take turns scatter by a tenth. Here they take turns layer by layer: SDPA, SDPA once more and
the plan each have a copy of the model, of the same weights, and their prefills run side by side, of which one at a time
goes on to its next layer, in an order drawn anew for every layer. A prefill's time is the sum of its layers'. It needs
greenlet, which the tests' requirements bring.
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from greenlet import getcurrent, greenlet
from transformers import PreTrainedModel

from sinkstudy.attention import Plan
from sinkstudy.evaluation.benchmark import usable_lengths, windows
from sinkstudy.evaluation.ceiling import Shape, prefill_ceiling
from sinkstudy.evaluation.variants import AGAIN, SDPA, Variant, last_logits, running
from sinkstudy.models.loading import load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.stats.speedups import speedups
from sinkstudy.store.tables import write_table

TEXT = "texts/heldout.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("plan")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8000])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    loaded, plan = load_model(ModelSpec(source=given.folder)), Plan.load(given.plan)
    token_ids = tokenize(loaded, Path(TEXT).read_text(encoding="utf-8"), TEXT)
    ways = [SDPA, AGAIN, Variant(plan.strategy, plan.policy, plan, "projections")]
    models, rows = [of_same_weights(loaded.model) for _ in ways], []
    for model in models:
        for layer in layers(model):
            layer.register_forward_pre_hook(pause)
    with ExitStack() as stack:
        for model, way in zip(models, ways, strict=True):
            stack.enter_context(running(model, way))
        for n in usable_lengths(loaded.model, given.folder, len(token_ids), given.lengths):
            ids = windows(token_ids, n, 1).to(loaded.model.device)
            with torch.inference_mode():
                seconds = in_turn([prefill(model, ids) for model in models], 1 + given.rounds)[1:]
            found = speedups(seconds, 0)
            ceiling = prefill_ceiling(Shape.of(loaded.model), n, plan.heads if plan.covers(n) else {}, plan, ())
            for i, way in enumerate(ways):
                factor = 1 if i == 0 else found.factor
                interval = found.ratio[i], found.ratio[i] / factor, found.ratio[i] * factor
                bound = 1 if way.plan is None else ceiling
                rows.append((n, way.strategy, way.policy, np.median(seconds[:, i]), *interval, bound, len(seconds)))
            columns = ["n_tokens", "strategy", "policy", "median_s", "speedup_vs_sdpa", "speedup_low", "speedup_high"]
            write_table(pd.DataFrame(rows, columns=[*columns, "ceiling", "rounds"]), given.out)
    print(given.out.read_text(encoding="utf-8"))


def of_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    kept = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(one): one for one in kept})


def layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    return [one for one in model.modules() if any(hasattr(child, "layer_idx") for child in one.children())]


def prefill(model: PreTrainedModel, ids: torch.Tensor) -> Callable[[], object]:
    return lambda: model(ids, use_cache=False, **last_logits(model))


def pause(layer: torch.nn.Module, inputs: tuple) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    getcurrent().parent.switch()


def in_turn(calls: Sequence[Callable[[], object]], rounds: int) -> np.ndarray:
    """Seconds of each call, (round, call): those of a round run side by side, from one pause to the next in turn."""
    seconds, order = np.zeros((rounds, len(calls))), np.random.default_rng(0)
    for spent in seconds:
        fibers = [greenlet(call) for call in calls]
        while not all(one.dead for one in fibers):
            for i in order.permutation(len(fibers)):
                if not fibers[i].dead:
                    start = time.perf_counter()
                    fibers[i].switch()
                    spent[i] += time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    main()
