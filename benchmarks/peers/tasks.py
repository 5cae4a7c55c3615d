"""What every method of the comparison is given: the same texts, the same questions, the same KV bytes.

Plans are made from the study's prompts, as policy `budget` makes its own; the texts are the held-out ones.
"""

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from sinkstudy.attention import Plan
from sinkstudy.evaluation.budget import calibration_texts, window_plan
from sinkstudy.evaluation.head_costs import head_costs
from sinkstudy.evaluation.retrieval import DEPTHS, planted, told_fact
from sinkstudy.models.loading import LoadedModel, load_model, tokenize
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import read_prompts

PROMPTS, TEXT = "prompts.tsv", "texts/heldout.txt"
LEVELS = (0.25, 0.5, 0.7)  # Our plans replace these shares of the heads.
SINKS, WINDOW, COSTED = 4, 512, 4096  # Replaced heads share one window; costs come from so many tokens of prompts.
CONTINUED = 256
_SAMPLES = 50  # kvpress scores heads on so many texts.


def make_tasks(folder: str, lengths: list[int], contexts: int) -> dict:
    """All that the two processes need, ready for JSON. `folder`: a model in Hugging Face format. `contexts`: how many
    texts of each length are continued and asked about.

    `tasks`: by length, of texts and prompts, see `_texts` and `_prompts`. `plans`: by level. `kv_share`: by length and
    level, what a plan leaves of the cache. `calibration`: the texts that plans were made from, in pieces.
    """
    loaded = load_model(ModelSpec(source=folder))
    prompts = [one.text for one in read_prompts(Path(PROMPTS))]
    fit = torch.tensor([tokenize(loaded, calibration_texts(prompts)[0], "calibration")[:COSTED]])
    plans = plans_of_levels(loaded.model, fit)
    held_out = tokenize(loaded, Path(TEXT).read_text(encoding="utf-8"), "held-out")
    return {
        "folder": folder,
        "tasks": {n: [*_texts(loaded, held_out, n, contexts), *_prompts(loaded, held_out, n)] for n in lengths},
        "plans": {level: asdict(plan) for level, plan in plans.items()},
        "kv_share": {n: {level: kv_share(loaded.model, plan, n) for level, plan in plans.items()} for n in lengths},
        "calibration": _pieces("\n\n".join(calibration_texts(prompts))),
    }


def plans_of_levels(model: PreTrainedModel, fit: torch.Tensor) -> dict[float, Plan]:
    """The cheapest KV heads, with all query heads that read them, up to each share of all. `fit`: (1, query)."""
    empty = replace(window_plan(SINKS, WINDOW), min_tokens=None)
    costs = head_costs(model, fit, [empty])
    of_kv = costs.drop_duplicates(["layer", "kv_head"]).sort_values(["kv_head_cost", "layer", "kv_head"])
    return {level: _cheapest(empty, costs, of_kv.head(round(level * len(of_kv)))) for level in LEVELS}


def _cheapest(empty: Plan, costs: pd.DataFrame, kv_heads: pd.DataFrame) -> Plan:
    chosen = costs.merge(kv_heads[["layer", "kv_head"]])
    return replace(empty, heads=chosen.groupby("layer")["head"].agg(list).to_dict())


def kv_share(model: PreTrainedModel, plan: Plan, n_tokens: int) -> float:
    """What a plan of whole KV heads leaves of the keys and values of so many tokens."""
    config = model.config.get_text_config()
    heads = plan.replaced / (config.num_hidden_layers * config.num_attention_heads)
    return 1 - heads * (1 - min(1, (plan.sink_tokens + plan.window) / n_tokens))


def _texts(loaded: LoadedModel, held_out: list[int], n: int, contexts: int) -> list[dict]:
    """Contexts of `n` tokens with a fact told at each depth. `ids`: what is prefilled; `next`: the text goes on with
    it; `asked`: questions with their answers, `answer` tokens long, which come after the context was prefilled."""
    texts = []
    for case, start in enumerate(np.linspace(0, len(held_out) - n - CONTINUED, contexts).astype(int)):
        facts = [told_fact(loaded.piece, case + i) for i in range(len(DEPTHS))]
        around = held_out[start : start + n - sum(len(fact) for fact, _, _ in facts)]
        asked = [_asked(f"{d:g}", question, answer) for d, (_, question, answer) in zip(DEPTHS, facts, strict=True)]
        following = held_out[start + len(around) :][:CONTINUED]
        ids = planted(around, [fact for fact, _, _ in facts], DEPTHS)
        texts.append({"ids": ids, "next": following, "asked": asked})
    return texts


def _prompts(loaded: LoadedModel, held_out: list[int], n: int) -> list[dict]:
    """The same with one fact, and the question, all but its last token, within the `n` tokens that are prefilled."""
    prompts = []
    for case, depth in enumerate(DEPTHS):
        fact, question, answer = told_fact(loaded.piece, case)
        around = held_out[: n - len(fact) - len(question) + 1]
        ids = [*planted(around, [fact], [depth]), *question[:-1]]
        asked = _asked(f"{depth:g}_in_prompt", question[-1:], answer)
        prompts.append({"ids": ids, "next": [], "asked": [asked]})
    return prompts


def _asked(name: str, question: list[int], answer: list[int]) -> dict:
    return {"name": name, "ids": [*question, *answer], "answer": len(answer)}


def _pieces(text: str) -> list[str]:
    """The text in as many pieces of equal length as kvpress draws samples."""
    ends = np.linspace(0, len(text), _SAMPLES + 1).astype(int)
    return [text[start:end] for start, end in pairwise(ends)]
