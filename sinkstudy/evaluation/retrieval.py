"""What a model finds again at a distance: facts that a long text tells once, and a passage that comes a second time.

Means over all positions hide both, because few positions need what lies far behind. A text tells many facts and is read
once: every question is asked from a copy of the KV cache that this leaves.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.evaluation.variants import Variant, at_work, last_logits, running, unmodified

DEPTHS = (0.1, 0.5, 0.9)
_BAND = 0.1  # The facts of one depth are spread over this share of a text.
_FILLED = 0.25  # All facts together take up at most this share of a text.
_TOLD = "\nThe code of the {} {} is"
# The lengths of these lists have no common divisor, so every case has another pair until all pairs are used.
_ADJECTIVES = ("blue", "north", "old", "green", "second", "round", "broken", "quiet")
_ADJECTIVES += ("narrow", "iron", "upper", "painted", "early", "heavy", "southern", "small")
_NOUNS = ("safe", "gate", "printer", "office", "folder", "cellar", "ladder", "engine", "cabinet")
_NOUNS += ("tower", "garage", "locker", "elevator", "warehouse", "bridge", "kitchen", "radio")
# Costs are estimated from facts with these numbers, so that plans are checked on other facts.
_COSTED, _COSTED_CASES = 1000, 24
_AFTER = 16  # of a copied passage its first tokens do not say yet that it is one
_KEY = ["model", "task", "n_tokens", "depth", "strategy", "policy"]
_MEASURES = ["log_prob", "rank", "accuracy"]


@dataclass(frozen=True)
class Context:
    """A text that tells facts. `ids`: (1, query). `asked`: of each fact its depth, and the token ids of the question
    for it and of the answer."""

    ids: Tensor
    asked: Sequence[tuple[float, list[int], list[int]]]


def retrieval_table(
    model: PreTrainedModel,
    name: str,
    encode: Callable[[str], list[int]],
    token_ids: list[int],
    variants: Sequence[Variant],
    lengths: Sequence[int],
    cases: int,
) -> pd.DataFrame:
    """How the unmodified model and every variant that replaces heads do, at each length.

    `encode`: token ids of a piece of text, without special tokens. `token_ids`: the text around, of at least the
    largest length. Task `fact`: what `fact_contexts` asks, `cases` at each depth. Task `copy`: the second half of the
    text is the first once more. Columns: _KEY, cases, and means over them: `log_prob` of an answer's token, nats,
    `rank` of it among all tokens, from 1, and `accuracy`, the share of answers whose every token is the most likely one
    (of copies: of such tokens), all teacher-forced.
    """
    rows, baseline = [], unmodified(model)
    for n in lengths if cases else ():
        contexts = fact_contexts(encode, token_ids, n, cases)
        twice = torch.tensor([token_ids[: n // 2] * 2])
        tasks = [(twice, partial(_copied, model, twice))] if n // 2 > _AFTER else []
        tasks += [(contexts[0].ids, partial(answered, model, contexts))] if contexts else []
        for ids, task in tasks:
            for one in [baseline, *at_work(model, variants, ids.to(model.device))]:
                with running(model, one.variant):
                    found = task().to_dict("records")
                here = [{"model": name, "n_tokens": n} | cells for cells in one.cells()]
                rows += [cells | answer for cells in here for answer in found]
    by_way = pd.DataFrame(rows, columns=[*_KEY, *_MEASURES]).groupby(_KEY, sort=False, dropna=False)
    return by_way.mean().assign(cases=by_way.size()).reset_index()


def asked_texts(
    encode: Callable[[str], list[int]], token_ids: Sequence[int], tokens: int
) -> list[tuple[Tensor, list[int]]]:
    """Texts that tell facts at each of DEPTHS and ask for them at their end, each question with its answer.

    Of each the ids (1, query), at most `tokens` of them, and the queries that predict the tokens of answers: a share of
    all too small to be seen in means over a text. As many texts as it takes, none where they have no room for facts,
    see `fact_contexts`.
    """
    # Questions and answers take no more room at the end than the same facts take where they are told.
    contexts = fact_contexts(encode, token_ids, int(tokens / (1 + _FILLED)), _COSTED_CASES, _COSTED)
    texts = []
    for context in contexts:
        ids, predicting = context.ids[0].tolist(), []
        at_each = len(context.asked) // len(DEPTHS)
        # The questions go through the depths in turn, so that no depth is always asked about last.
        for _, question, answer in (one for turn in range(at_each) for one in context.asked[turn::at_each]):
            ids += question
            predicting += range(len(ids) - 1, len(ids) - 1 + len(answer))
            ids += answer
        texts.append((torch.tensor([ids]), predicting))
    return texts


def fact_contexts(
    encode: Callable[[str], list[int]], token_ids: Sequence[int], tokens: int, cases: int, first: int = 0
) -> list[Context]:
    """Texts that tell `cases` facts at each of DEPTHS, each fact once, in as few texts as have room for them.

    Facts are numbered from `first` on. With the longest question and its answer after it, a text has `tokens` tokens.
    Around its facts stands `token_ids`, of at least as many, from places spread over it and behind its first token,
    which may be BOS. Where facts at all depths would take more than a quarter of a text, there is none.
    """
    facts = [told_fact(encode, first + case) for case in range(cases * len(DEPTHS))]
    longest = max(len(told) for told, _, _ in facts)
    asked = max(len(question) + len(answer) for _, question, answer in facts)
    room = min(int(_FILLED * tokens) // longest, len(_ADJECTIVES) * len(_NOUNS)) // len(DEPTHS)
    if room < 1:
        return []
    # Neighbouring cases share no word, so one text tells neighbours.
    by_text = np.array_split(range(cases), -(-cases // room))
    starts = np.linspace(1, len(token_ids) - tokens + 1, len(by_text)).astype(int)
    contexts = []
    for start, dealt in zip(starts, by_text, strict=True):
        shares = np.add.outer(DEPTHS, _BAND * ((np.arange(len(dealt)) + 0.5) / len(dealt) - 0.5)).ravel()
        here = [(depth, *facts[case * len(DEPTHS) + i]) for i, depth in enumerate(DEPTHS) for case in dealt]
        told = [fact for _, fact, _, _ in here]
        around = [token_ids[0], *token_ids[start : start + tokens - asked - sum(map(len, told)) - 1]]
        ids = torch.tensor([planted(around, told, shares)])
        contexts.append(Context(ids, [(depth, question, answer) for depth, _, question, answer in here]))
    return contexts


def told_fact(encode: Callable[[str], list[int]], case: int) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a fact as it is told, of the question for it, and of the answer, which nothing else suggests."""
    thing = _ADJECTIVES[case % len(_ADJECTIVES)], _NOUNS[case % len(_NOUNS)]
    # Squares modulo a prime show no pattern that a model could continue.
    number = 1000 + 4817 * (case + 1) ** 2 % 8999
    question, answer = encode(_TOLD.format(*thing)), encode(f" {number}")
    return [*question, *answer, *encode(".\n")], question, answer


def planted(around: Sequence[int], facts: Sequence[list[int]], shares: Sequence[float]) -> list[int]:
    """`around` with facts in it, each from its share of the whole on, behind the first token. `shares` rise."""
    ids, before = [], 0
    whole = len(around) + sum(map(len, facts))
    for i, (fact, share) in enumerate(zip(facts, shares, strict=True)):
        place = max(1, round(share * whole) - sum(map(len, facts[:i])))
        ids += [*around[before:place], *fact]
        before = place
    return [*ids, *around[before:]]


@torch.inference_mode()
def answered(model: PreTrainedModel, contexts: Sequence[Context]) -> pd.DataFrame:
    """How the model, as it runs now, answers: a row per question with its task, depth, and _MEASURES."""
    rows = []
    for context in contexts:
        read = model(context.ids.to(model.device), use_cache=True, **last_logits(model)).past_key_values
        for depth, question, answer in context.asked:
            ids = torch.tensor([[*question, *answer]], device=model.device)
            logits = model(ids, past_key_values=copy.deepcopy(read), use_cache=True).logits
            rows.append(("fact", depth, *scored_answer(logits[:, -len(answer) - 1 :], ids, "fact")))
    return pd.DataFrame(rows, columns=["task", "depth", *_MEASURES])


def right_answers(model: PreTrainedModel, contexts: Sequence[Context]) -> pd.Series:
    """How many questions the model, as it runs now, answers rightly, by depth."""
    return answered(model, contexts).groupby("depth")["accuracy"].sum()


@torch.inference_mode()
def _copied(model: PreTrainedModel, ids: Tensor) -> pd.DataFrame:
    """How well the model, as it runs now, predicts the second half of `ids` (1, query), which is the first again."""
    ids = ids.to(model.device)
    logits = model(ids, use_cache=False, logits_to_keep=ids.shape[1] // 2 - _AFTER + 1).logits
    found = ("copy", float("nan"), *scored_answer(logits, ids, "copy"))
    return pd.DataFrame([found], columns=["task", "depth", *_MEASURES])


def scored_answer(logits: Tensor, inputs: Tensor, task: str) -> tuple[float, float, float]:
    """Mean log-probability and rank of the last tokens of `inputs` (1, query), and whether all are the most likely."""
    log_prob = torch.log_softmax(logits[0, :-1].double(), -1)
    answer = inputs[0, -len(log_prob) :, None]
    right = log_prob.gather(-1, answer)
    rank = 1 + (log_prob > right).sum(-1)
    first = (rank == 1).double()
    return right.mean().item(), rank.double().mean().item(), (first.mean() if task == "copy" else first.prod()).item()
