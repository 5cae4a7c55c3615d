"""What a model finds again at a distance: a fact that a long text tells once, and a passage that comes a second time.

Means over all positions hide both, because few positions need what lies far behind.
"""

from collections.abc import Callable, Sequence
from itertools import product

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.evaluation.variants import EAGER, SDPA, Variant, at_work, running, runs_on_sdpa

DEPTHS = (0.1, 0.5, 0.9)
# What is told of a thing, and asked for at the end; the answer is a number that nothing else in a text suggests.
THINGS = ("blue safe", "north gate", "old printer", "harbour office", "green folder", "second cellar")
_TOLD, _NUMBERS = "\nThe code of the {} is", (4817, 2963, 7051, 9384, 5126, 8640)
_AFTER = 16  # of a copied passage its first tokens do not say yet that it is one
_KEY = ["model", "task", "n_tokens", "depth", "strategy", "policy"]


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
    largest length. Task `fact`: a code told at a share `depth` of the text and asked for at its end, `cases` different
    ones; a text of which they would fill half has none. Task `copy`: the second half of the text is the first once
    more. Columns: _KEY, cases, and means over them: `log_prob` of an answer's token, nats, `rank` of it among all
    tokens, from 1, and `accuracy`, the share of answers whose every token is the most likely one (of copies: of such
    tokens), all teacher-forced.
    """
    baseline = SDPA if runs_on_sdpa(model) else EAGER
    rows = []
    for n in lengths if cases else ():
        texts = [("copy", float("nan"), token_ids[: n // 2] * 2, n // 2 - _AFTER)] if n // 2 > _AFTER else []
        for depth, case in product(DEPTHS, range(cases)):
            fact, question, answer = told_fact(encode, case)
            if len(fact) + len(question) + len(answer) < n / 2:
                around = token_ids[: n - len(fact) - len(question) - len(answer)]
                place = max(1, round(depth * len(around)))  # behind the first token, which may be BOS
                ids = [*around[:place], *fact, *around[place:], *question, *answer]
                texts.append(("fact", depth, ids, len(answer)))
        ways = at_work(model, variants, torch.tensor([token_ids[:n]], device=model.device))
        for task, depth, ids, asked in texts:
            inputs = torch.tensor([ids], device=model.device)
            for variant, policies in [(baseline, [baseline.policy]), *((one.variant, one.policies) for one in ways)]:
                with running(model, variant), torch.inference_mode():
                    found = scored_answer(model(inputs, use_cache=False, logits_to_keep=asked + 1).logits, inputs, task)
                rows += [(name, task, n, depth, variant.strategy, policy, *found) for policy in policies]
    table = pd.DataFrame(rows, columns=[*_KEY, "log_prob", "rank", "accuracy"])
    means = table.groupby(_KEY, sort=False, dropna=False).agg("mean")
    return means.assign(cases=table.groupby(_KEY, sort=False, dropna=False).size()).reset_index()


def told_fact(encode: Callable[[str], list[int]], case: int) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a fact as it is told, of the question for it, and of the answer."""
    thing, number = THINGS[case % len(THINGS)], _NUMBERS[(case + case // len(THINGS)) % len(_NUMBERS)]
    question, answer = encode(_TOLD.format(thing)), encode(f" {number}")
    return [*question, *answer, *encode(".\n")], question, answer


def scored_answer(logits: Tensor, inputs: Tensor, task: str) -> tuple[float, float, float]:
    """Mean log-probability and rank of the last tokens of `inputs` (1, query), and whether all are the most likely."""
    log_prob = torch.log_softmax(logits[0, :-1].double(), -1)
    answer = inputs[0, -len(log_prob) :, None]
    right = log_prob.gather(-1, answer)
    rank = 1 + (log_prob > right).sum(-1)
    first = (rank == 1).double()
    return right.mean().item(), rank.double().mean().item(), (first.mean() if task == "copy" else first.prod()).item()
