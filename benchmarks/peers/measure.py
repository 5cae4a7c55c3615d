"""How every method is measured, in whichever environment it runs."""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sinkstudy.attention.recent import RecentTokens
from sinkstudy.evaluation.quality import compare
from sinkstudy.evaluation.retrieval import scored_answer
from sinkstudy.evaluation.timing import Alternative, peak_bytes
from sinkstudy.evaluation.variants import last_logits

# kvpress makes this head pattern of the calibration text; it lies beside the tasks.
PATTERN = "duo_attention.csv"
_DECODED = 8  # A sample of decoding takes so many tokens.
_WARM_TOKENS = 256


@dataclass(frozen=True)
class Method:
    """`prefill`: entered around a prefill; `after`: around what continues its cache. `level`: whose KV bytes it takes.
    `columns`: what the table says of it besides. `read_share`: how much of the cache it attends to, after a prefill.
    `at_once`: how many tokens a cache is continued by."""

    name: str
    level: float = 0
    prefill: Callable[[], AbstractContextManager] = nullcontext
    after: Callable[[], AbstractContextManager] = nullcontext
    columns: dict = field(default_factory=dict)
    read_share: Callable[[], float] = lambda: 1.0
    at_once: int = 256

    @property
    def key(self) -> dict:
        return {"method": self.name, "level": self.level}


UNMODIFIED, AGAIN = Method("sdpa"), Method("sdpa again")


@torch.inference_mode()
def quality(model: PreTrainedModel, methods: list[Method], tasks: list[dict]) -> list[dict]:
    """A row per method: means over tasks, of the logarithm for perplexities. The first method is the unmodified model,
    from which `kl` (nats per token) is measured on the tokens that follow each context."""
    rows = []
    for number, task in enumerate(tasks):
        reference = None
        for method in methods:
            start = time.perf_counter()
            row, logits = _measured(model, method, task, reference, peak=number == 0)
            reference = logits if reference is None else reference
            rows.append(row)
            spent = time.perf_counter() - start
            print(f"task {number}: {method.name} {method.level} {spent:.1f} s", file=sys.stderr, flush=True)
    found = pd.DataFrame(rows).groupby(["method", "level"], sort=False).mean()
    losses = found.filter(regex="^log_perplexity")
    found[[name.removeprefix("log_") for name in losses]] = np.exp(losses)
    found = found.drop(columns=losses.columns)
    return [one.key | one.columns | found.loc[(one.name, one.level)].to_dict() for one in methods]


def _measured(
    model: PreTrainedModel, method: Method, task: dict, reference: Tensor | None, peak: bool
) -> tuple[dict, Tensor | None]:
    """What is measured of a method on one task, and its logits of what follows the context."""
    ids, filled = torch.tensor([task["ids"]]), []

    def prefill() -> None:
        filled[:] = [model(ids, use_cache=True, **last_logits(model)).past_key_values]

    row = dict(method.key)
    if peak:
        row["peak_mb"] = peak_bytes(Alternative(method.prefill, prefill), model.device) / 1e6
    else:
        with method.prefill():
            prefill()
    row["kv_mb"] = held_bytes(filled[0]) / 1e6
    row["kv_read_mb"] = row["kv_mb"] * method.read_share()
    logits = None
    if task["next"]:
        following = torch.tensor([task["next"]])
        logits = _continued(model, method, filled[0], following, ids.shape[1])
        found = compare(logits if reference is None else reference, logits, following)
        row |= {"kl": found.kl, "log_perplexity": np.log(found.perplexity)}
        row["log_perplexity_ratio"] = np.log(found.perplexity_ratio)
    for asked in task["asked"]:
        question = torch.tensor([asked["ids"]])
        answers = _continued(model, method, filled[0], question, ids.shape[1])[:, -asked["answer"] - 1 :]
        values = scored_answer(answers, question, "fact")
        measures = ("log_prob", "rank", "accuracy")
        row |= {f"{name}_{asked['name']}": value for name, value in zip(measures, values, strict=True)}
    return row, logits


def _continued(model: PreTrainedModel, method: Method, cache: Cache, ids: Tensor, before: int) -> Tensor:
    """Logits (1, query, vocabulary) of `ids` (1, query), which come `before` tokens into the text. The cache stays."""
    positions = torch.arange(before, before + ids.shape[1])[None]
    cache, size = copy.deepcopy(cache), method.at_once
    pieces = zip(ids.split(size, 1), positions.split(size, 1), strict=True)
    with method.after():
        logits = [model(some, past_key_values=cache, position_ids=at).logits for some, at in pieces]
    return torch.cat(logits, 1)


def held_bytes(cache: Cache) -> int:
    """Memory of all tensors that a cache holds, shared or not, whole storages."""
    storages = [t.untyped_storage() for layer in cache.layers for t in _tensors(vars(layer))]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(held: object) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for one in held.values() if isinstance(held, dict) else held:
            yield from _tensors(one)
    elif isinstance(held, RecentTokens):
        yield from held.held


@torch.inference_mode()
def seconds(model: PreTrainedModel, methods: list[Method], task: dict, rounds: int) -> list[dict]:
    """Seconds of a prefill and of one decoded token after it, a row per round and method.

    All methods take their turn in every round, in an order drawn anew."""
    ids, following = torch.tensor([task["ids"]]), torch.tensor([task["next"]])
    for method in methods:
        with method.prefill():
            model(ids[:, :_WARM_TOKENS], use_cache=True)
    rows, order = [], np.random.default_rng(0)
    for number in range(rounds):
        for i in order.permutation(len(methods)):
            method = methods[i]
            with method.prefill():
                start = time.perf_counter()
                cache = model(ids, use_cache=True, **last_logits(model)).past_key_values
                prefill = time.perf_counter() - start
            with method.after():
                for at in range(_DECODED + 1):
                    if at == 1:  # The first token only warms the caches, so the clock starts after it.
                        start = time.perf_counter()
                    position = torch.tensor([[ids.shape[1] + at]])
                    model(following[:, at : at + 1], past_key_values=cache, position_ids=position)
                decode = (time.perf_counter() - start) / _DECODED
            rows.append({**method.key, "round": number, "prefill": prefill, "decode": decode})
    return rows
