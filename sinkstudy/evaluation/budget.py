"""Policy `budget`: windows for the heads that cost least, until a stated KL divergence, or retrieval, is spent.

A KV head's cache shrinks only where all heads that read it have a window, so these go together; or, where prefill is
what should be faster, those alone that cost least. They share one of several windows. What is spent next is always what
costs least for the work it saves, where what answers lose counts along with what all text does, if it is known.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.optimize import optimized
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.evaluation.quality import compare, logits_of
from sinkstudy.evaluation.retrieval import DEPTHS, Context, fact_contexts, right_answers

STRATEGY = "sink_window"
_SEPARATOR = "\n\n"
# Heads are ordered by their cost on text plus this share of what answers lose: few tokens of a text are answers.
_ANSWERS = 0.005
# The loss is estimated from few answers, so this many of its standard errors are added to it.
_ERRORS = 2
# The number of answers lost is partly chance, so a plan that fails their check keeps at least this share of its budget.
_KEPT = 0.8


def window_plan(sink_tokens: int, window: int, max_tokens: int | None = None) -> Plan:
    """A plan without heads yet; shorter prompts than those whose work it halves run unchanged, as they gain nothing."""
    return Plan(
        strategy=STRATEGY,
        min_tokens=halves_work(sink_tokens, [window]),
        max_tokens=max_tokens,
        sink_tokens=sink_tokens,
        window=window,
        policy="budget",
    )


def halves_work(sink_tokens: int, windows: Iterable[int]) -> int:
    """The shortest prompt of whose attention heads with these windows leave out half, taken together: about 3.4 times
    the window."""
    widths = sink_tokens + np.array(list(windows))
    tokens = widths.max()
    # A window of w tokens leaves out about (1 - w / n)^2 of the causal attention to n tokens.
    while np.square(1 - widths / tokens).mean() < 0.5:
        tokens += 1
    return int(tokens)


def calibration_texts(texts: Sequence[str]) -> tuple[str, str]:
    """Texts joined to two long ones, to fit a plan to and to check it on: the longest first, dealt in turn. A single
    text is cut in half."""
    if len(texts) == 1:
        return texts[0][: len(texts[0]) // 2], texts[0][len(texts[0]) // 2 :]
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return _SEPARATOR.join(ordered[::2]), _SEPARATOR.join(ordered[1::2])


def checked_facts(
    encode: Callable[[str], list[int]], token_ids: Sequence[int], tokens: int, most_lost: float | None
) -> list[Context]:
    """Texts of so many `tokens` to check a plan's answers on, see `fact_contexts`: of as many facts at each depth as
    make two answers, since one is often lost by chance, a share of `most_lost` or less. None where that is None or 0.
    """
    return fact_contexts(encode, token_ids, tokens, math.ceil(2 / most_lost)) if most_lost else []


def budget(
    model: PreTrainedModel,
    plan: Plan,
    costs: pd.DataFrame,
    check_ids: Tensor,
    limit: float,
    contexts: Sequence[Context] = (),
    most_lost: float | None = 0.04,
    whole_groups: bool = True,
) -> Plan:
    """`plan` with KV heads, and a window for each, that together cost at most `limit` nats per token and, at any depth
    of `contexts`, right answers to at most the share `most_lost` of the questions.

    `costs`: rows of `head_costs`, for one window or several; where they say what answers lose, heads that find these
    are taken later. Estimates add up costs as if heads did not interact, and count no right answers, so both are
    measured on what the costs were not estimated on: the divergence on `check_ids` (1, query), the answers on
    `contexts` (see `checked_facts`; none: not at all). Where one of them is too much, the plan is cut back. Only where
    the unmodified model answers more than `most_lost` of the questions can it lose as much: a model that finds no facts
    loses none, whatever the plan. Without heads, for a text longer than the plan covers, or too short for any of the
    windows to halve its work.
    """
    tokens = min(ids.shape[1] for ids in (check_ids, *(context.ids for context in contexts)))
    if plan.max_tokens is not None and plan.max_tokens < check_ids.shape[1]:
        return plan
    steps = _steps(costs[costs["strategy"] == plan.strategy], plan.sink_tokens, tokens, whole_groups)
    spent, allowed = np.maximum.accumulate(steps["cost"].cumsum()), limit
    count = int(np.searchsorted(spent, allowed, side="right"))
    asked = sum(len(context.asked) for context in contexts) / len(DEPTHS)
    if not count:
        return plan
    known, before = right_answers(model, contexts), logits_of(model, check_ids)
    while count:
        fitted = _with_windows(plan, steps.head(count))
        within = _within(compare(before, logits_of(model, check_ids, fitted), check_ids).kl, limit)
        if within == 1 and contexts and known.max() / asked > most_lost:
            with optimized(model, fitted):
                within = max(_KEPT, _within((known - right_answers(model, contexts)).max() / asked, most_lost))
        if within == 1:
            return fitted
        # The next plan may spend less, by the factor by which this one exceeded its limit.
        allowed *= within
        count = min(count - 1, int(np.searchsorted(spent, allowed, side="right")))
    return plan


def _within(measured: float, limit: float) -> float:
    """The share of what was spent that keeps the limit, if what is measured goes with it."""
    return 1.0 if measured <= limit else limit / measured


def _steps(costs: pd.DataFrame, sink_tokens: int, tokens: int, whole_groups: bool) -> pd.DataFrame:
    """What may be spent on, in the order in which it should be: each row gives `heads` of a KV head (layer, kv_head) a
    `window` in place of what they had before, at an added `cost`."""
    work = STRATEGIES[STRATEGY].work
    saved = {w: work(tokens, 1, 0, tokens) - work(tokens, 1, sink_tokens, w) for w in costs["window"].unique()}
    usable = costs[costs["window"].isin([w for w in saved if halves_work(sink_tokens, [w]) <= tokens])].copy()
    for of in ("", "kv_head_"):
        usable[f"{of}weighed"] = usable[f"{of}cost"]
        if "answer_loss" in usable:
            usable[f"{of}weighed"] += _ANSWERS * (usable[f"{of}answer_loss"] + _ERRORS * usable[f"{of}answer_error"])
    rows = []
    for (layer, kv_head), readers in usable.groupby(["layer", "kv_head"]):
        options = []
        for window, of in readers.groupby("window"):
            cheapest = of.sort_values(["weighed", "head"])
            paid = cheapest[["weighed", "cost"]].cumsum().to_numpy()
            # One head's change may undo another's, which only the cost of all heads together shows.
            paid[-1] = cheapest[["kv_head_weighed", "kv_head_cost"]].iloc[0]
            named = cheapest["head"].tolist()
            for n in range(len(named) if whole_groups else 1, len(named) + 1):
                options.append((n * saved[window], *paid[n - 1].tolist(), int(window), named[:n]))
        for before, after in _cheapest(sorted(options)):
            *_, cost, window, heads = after
            rows.append((_price(before, after), layer, kv_head, window, cost - before[2], heads))
    return pd.DataFrame(sorted(rows), columns=["price", "layer", "kv_head", "window", "cost", "heads"])


def _cheapest(options: Sequence[tuple]) -> Iterable[tuple[tuple, tuple]]:
    """Steps from nothing to ever more work saved, each dearer per work than the one before: the lower convex hull of
    `options` (work saved, weighed cost, cost of text, window, heads), which are sorted."""
    hull = [(0.0, 0.0, 0.0, 0, [])]
    for one in options:
        while len(hull) > 1 and _price(hull[-2], hull[-1]) >= _price(hull[-1], one):
            hull.pop()
        hull.append(one)
    return pairwise(hull)


def _price(before: tuple, after: tuple) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])


def _with_windows(plan: Plan, steps: pd.DataFrame) -> Plan:
    """`plan` after these steps."""
    reached = steps.drop_duplicates(["layer", "kv_head"], keep="last").explode("heads")
    windows = {
        layer: dict(zip(of["heads"], of["window"], strict=True))
        for layer, of in reached.sort_values(["layer", "heads"]).groupby("layer")
    }
    widths = sorted(reached["window"].unique().tolist(), reverse=True)
    return replace(
        plan,
        heads={layer: list(of) for layer, of in windows.items()},
        min_tokens=halves_work(plan.sink_tokens, reached["window"]),
        window=widths[0],
        windows=windows if len(widths) > 1 else None,
    )
