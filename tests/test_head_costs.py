"""What replacing each head would cost, against measuring it head by head, and the plans that spend a budget on it."""

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from tiny import ALL, SELF_ATTENDING, prompt_ids, tiny_model
from toy import toy as shipped_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.evaluation.benchmark import windows
from sinkstudy.evaluation.budget import budget, calibration_texts, checked_facts, window_plan
from sinkstudy.evaluation.head_costs import ANSWER_COLUMNS, COLUMNS, head_costs
from sinkstudy.evaluation.onset import from_where_it_pays
from sinkstudy.evaluation.policies import mean_kl
from sinkstudy.evaluation.retrieval import DEPTHS, Context, planted
from sinkstudy.evaluation.variants import takes_plans
from sinkstudy.models.loading import tokenize
from sinkstudy.stats.stand_ins import stand_in_table, with_scores

HELD_OUT = Path("texts/heldout.txt").read_text(encoding="utf-8")
N = 320  # tokens of calibration text, and of text to check on
WINDOW = Plan(strategy="sink_window", sink_tokens=2, window=6)


@pytest.fixture(scope="module")
def loaded():
    return shipped_model()


@pytest.fixture(scope="module")
def toy(loaded):
    """The shipped model, and two stretches of text."""
    return loaded.model, *windows(tokenize(loaded, HELD_OUT, "held-out"), N, 2).split(1)


@pytest.fixture(scope="module")
def costs(toy):
    return head_costs(*toy[:2], [WINDOW, replace(WINDOW, strategy="first_value")], seed=0)


@pytest.mark.parametrize("strategy", ["sink_window", "first_value"])
def test_costs_rank_heads_as_measured_divergences_do_and_have_their_size(toy, costs, strategy):
    model, ids, _ = toy
    rows = costs[costs["strategy"] == strategy]
    assert len(rows) == 4 * 8
    measured = [
        mean_kl(model, replace(WINDOW, strategy=strategy, heads={row.layer: [row.head]}), [ids])
        for row in rows.itertuples()
    ]
    assert spearmanr(rows["cost"], measured).statistic >= 0.9
    # The second order says little of changes that turn predictions over, so the median stands for the size.
    assert 0.5 < np.median(rows["cost"] / measured) < 2


def test_the_cost_of_a_kv_head_is_that_of_its_query_heads_together():
    model, ids = tiny_model("llama", num_attention_heads=8, num_key_value_heads=2), prompt_ids(40)
    costs = head_costs(model, ids, [WINDOW], seed=0)
    for _, of_kv in costs.groupby(["layer", "kv_head"]):
        # Products add up query by query, so their root mean squares obey the triangle inequality.
        (together,), alone = of_kv["kv_head_cost"].unique(), np.sqrt(of_kv["cost"])
        assert max(0, 2 * alone.max() - alone.sum()) <= np.sqrt(together) * (1 + 1e-9)
        assert np.sqrt(together) <= alone.sum() * (1 + 1e-9)
    # Where each query head has a KV head of its own, the two are one.
    single = head_costs(tiny_model("llama", num_key_value_heads=4), ids, [WINDOW], seed=0)
    np.testing.assert_allclose(single["kv_head_cost"], single["cost"])


def test_heads_that_a_plan_leaves_as_they_are_have_no_cost():
    layers = ["sliding_attention", "full_attention", "full_attention"]
    model, ids = tiny_model("gemma3_text", layer_types=layers), prompt_ids(20)
    costs = head_costs(model, ids, [WINDOW, Plan(strategy="reuse")], seed=0)
    assert set(costs["layer"]) == {1, 2}
    reuse = head_costs(tiny_model("llama"), ids, [Plan(strategy="reuse")], seed=0)
    assert set(reuse["layer"]) == {1, 2}
    assert head_costs(model, ids, [], seed=0).empty


@pytest.mark.parametrize("model_type", [*ALL, "ctrl"])
def test_an_architecture_has_costs_for_its_heads_exactly_where_plans_can_be_measured(model_type):
    overrides = {"sliding_window": 64} if "sliding_window" in ALL.get(model_type, {}) else {}
    model, ids = tiny_model(model_type, **overrides), prompt_ids(20)
    takes = model_type not in (*SELF_ATTENDING, "gemma2", "gpt_oss")
    assert takes_plans(model) == takes
    if takes:
        costs = head_costs(model, ids, [WINDOW], seed=0)
        assert set(costs["layer"]) == ({1, 2} if model_type in ("lfm2", "qwen3_5_text") else {0, 1, 2})
        assert (costs["cost"] > 0).all()


def test_estimating_leaves_the_model_as_it_was(toy, costs):
    model, ids, _ = toy
    again = head_costs(model, ids, [WINDOW], seed=0)
    pd.testing.assert_frame_equal(again, costs[costs["strategy"] == "sink_window"].reset_index(drop=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not model(ids[:, :4]).logits.is_leaf  # embeddings and layers record gradients as before


def test_a_budget_buys_the_cheapest_kv_heads_and_is_kept_on_other_text(toy, costs):
    model, _, check = toy
    empty = window_plan(WINDOW.sink_tokens, WINDOW.window, None)
    plans = [budget(model, empty, costs, check, limit) for limit in (0, 1e-4, 1e-3, 1e-2)]
    assert plans[0].heads == {}
    assert plans[1].replaced < plans[2].replaced < plans[3].replaced
    order = costs[costs["strategy"] == "sink_window"].sort_values("kv_head_cost")[["layer", "head"]].to_numpy().tolist()
    for plan, limit in zip(plans[1:], (1e-4, 1e-3, 1e-2), strict=True):
        assert mean_kl(model, plan, [check]) <= limit
        assert sorted([n, h] for n, heads in plan.heads.items() for h in heads) == sorted(order[: plan.replaced])


def test_a_plan_that_costs_more_than_estimated_is_cut_back(toy, costs):
    model, _, check = toy
    empty, limit = window_plan(WINDOW.sink_tokens, WINDOW.window, None), 1e-3
    hopeful = costs.assign(kv_head_cost=costs["kv_head_cost"] / 50)
    plan = budget(model, empty, hopeful, check, limit)
    assert 0 < plan.replaced < 32
    assert mean_kl(model, plan, [check]) <= limit
    # A text that the window would cover for the most part says nothing.
    assert budget(model, empty, costs, check[:, :27], 1.0).heads == {}


def test_a_model_that_takes_no_plan_gets_one_without_heads():
    model, ids = tiny_model("bloom"), prompt_ids(80)
    empty = window_plan(1, 6)
    assert not takes_plans(model)
    for whole_groups in (True, False):
        assert budget(model, empty, head_costs(model, ids, []), ids, 1.0, whole_groups=whole_groups) == empty
        assert from_where_it_pays(model, empty) == empty


# When one of these commands comes again, the toy expects the character that followed it the first time.
RECALLED = {"_": "7", "#": "3", "/": "9"}


def recalling(loaded, places):
    """Stretches of text in which every command comes once, at these shares of it, and is asked for at the end."""
    contexts, prose = [], re.sub(r"[_#/*=(+\[]", "", HELD_OUT)
    facts = [loaded.piece(command + after) for command, after in RECALLED.items()]
    for text in windows(tokenize(loaded, prose, "prose"), 54, 20).tolist():
        asked = [(depth, [fact[0]], [fact[1]]) for depth, fact in zip(DEPTHS, facts, strict=True)]
        contexts.append(Context(torch.tensor([planted(text, facts, places)]), asked))
    return contexts


@torch.no_grad()
def right_by_depth(model, contexts):
    """Right answers in one pass over text and question."""
    right = Counter()
    for context in contexts:
        for depth, question, (answer,) in context.asked:
            logits = model(torch.cat([context.ids, torch.tensor([question])], 1), use_cache=False).logits
            right[depth] += int(logits[0, -1].argmax() == answer)
    return right


def test_a_plan_that_no_longer_finds_what_the_model_finds_is_cut_back(toy, loaded, costs):
    """Prose has no commands, so a divergence on it says nothing of the heads that follow them."""
    model, _, check = toy
    empty, limit = window_plan(WINDOW.sink_tokens, WINDOW.window, None), 1e-2
    far = recalling(loaded, DEPTHS)
    known = right_by_depth(model, far)
    assert min(known.values()) >= 12
    careless = budget(model, empty, costs, check, limit)
    with optimized(model, careless):
        assert max(known[depth] - right for depth, right in right_by_depth(model, far).items()) > 2
    careful = budget(model, empty, costs, check, limit, far, 0.1)
    assert 0 < careful.replaced < careless.replaced
    assert mean_kl(model, careful, [check]) <= limit
    with optimized(model, careful):
        assert max(known[depth] - right for depth, right in right_by_depth(model, far).items()) <= 2
    # A plan cannot lose answers that the unmodified model never gave.
    wrong = [Context(one.ids, [(depth, question, [1]) for depth, question, _ in one.asked]) for one in far]
    assert budget(model, empty, costs, check, limit, wrong, 0.1) == careless


def test_what_answers_lose_is_what_replacing_each_head_takes_from_them(toy):
    """The second half of another text stands for answers, which are too few in a text for a rank of heads."""
    model, fit, check = toy
    queries = range(N // 2, N - 1)
    costs = head_costs(model, fit, [WINDOW], asked=[(check, queries)])
    pd.testing.assert_frame_equal(costs[COLUMNS], head_costs(model, fit, [WINDOW]))

    @torch.no_grad()
    def log_prob():
        rows = model(check, use_cache=False).logits[0, queries].double().log_softmax(-1)
        return rows.gather(-1, check[0, N // 2 + 1 :, None])[:, 0]

    before, measured = log_prob(), []
    for row in costs.itertuples():
        with optimized(model, replace(WINDOW, heads={row.layer: [row.head]})):
            measured.append((before - log_prob()).mean().item())
    assert spearmanr(costs["answer_loss"], measured).statistic >= 0.9
    assert min(measured) < 0 < max(measured)
    # Twice as many answers of the same kind give the same loss with a smaller error.
    twice = head_costs(model, fit, [WINDOW], asked=[(check, queries), (check, queries)])
    for of in ("", "kv_head_"):
        np.testing.assert_allclose(twice[f"{of}answer_loss"], costs[f"{of}answer_loss"])
        np.testing.assert_allclose(twice[f"{of}answer_error"], costs[f"{of}answer_error"] / 2**0.5)
    of_kv = costs.groupby(["layer", "kv_head"])["answer_loss"].transform("sum")
    np.testing.assert_allclose(costs["kv_head_answer_loss"], of_kv, atol=1e-9)


def test_the_error_of_what_answers_lose_covers_what_more_answers_show(toy):
    """Every other token of a text stands for one set of answers, and the tokens between them for another."""
    model, fit, check = toy
    halves = [
        head_costs(model, fit, [WINDOW], asked=[(check, range(start, N - 1, 2))]) for start in (N // 2, N // 2 + 1)
    ]
    apart = halves[0]["answer_loss"] - halves[1]["answer_loss"]
    error = np.hypot(halves[0]["answer_error"], halves[1]["answer_error"])
    assert (apart.abs() > 2 * error).mean() < 0.25


@pytest.mark.parametrize("whole_groups", [True, False])
def test_heads_that_find_answers_are_taken_last(toy, costs, whole_groups):
    model, _, check = toy
    empty, limit = window_plan(WINDOW.sink_tokens, WINDOW.window, None), 1e-2
    priced = costs[costs["strategy"] == "sink_window"]
    blind = budget(model, empty, priced, check, limit, whole_groups=whole_groups)
    finding = {(layer, heads[0]) for layer, heads in blind.heads.items()}
    dear = [float((row.layer, row.head) in finding) for row in priced.itertuples()]
    of_kv = priced.assign(dear=dear).groupby(["layer", "kv_head"])["dear"].transform("sum")
    # A loss keeps a head from being taken early, and so does the error of a loss.
    for loss, error in ((20.0, 0.0), (0.0, 10.0)):
        losses = [each * np.array(of) for each in (loss, error) for of in (dear, of_kv)]
        priced = priced.assign(**dict(zip(ANSWER_COLUMNS, losses, strict=True)))
        plan = budget(model, empty, priced, check, limit, whole_groups=whole_groups)
        assert plan.replaced > 0
        assert mean_kl(model, plan, [check]) <= limit
        assert not finding & {(layer, head) for layer, heads in plan.heads.items() for head in heads}


def test_a_plan_that_finds_what_the_model_finds_is_not_cut_back(toy, loaded):
    """All that is told lies within the window."""
    model, fit, check = toy
    empty, near = window_plan(WINDOW.sink_tokens, 10, None), recalling(loaded, (1, 1, 1))
    costs = head_costs(model, fit, [empty])
    plan = budget(model, empty, costs, check, 1e-2)
    assert plan.replaced > 16
    assert budget(model, empty, costs, check, 1e-2, near, 0.1) == plan


def test_two_lost_answers_of_those_that_are_checked_are_within_the_limit():
    def encode(text):
        return [ord(letter) % 90 for letter in text]

    for most_lost, cases in {0.04: 50, 0.06: 34, 0.1: 20}.items():
        contexts = checked_facts(encode, prompt_ids(3000)[0].tolist(), 2000, most_lost)
        assert sum(len(context.asked) for context in contexts) == 3 * cases
        assert 2 / cases <= most_lost < 2 / (cases - 1)
    assert checked_facts(encode, [5] * 3000, 2000, None) == checked_facts(encode, [5] * 3000, 2000, 0.0) == []


def saved(width):
    """How many keys the queries of 60 tokens miss under a window of this width and a first token."""
    return sum(max(0, i - width) for i in range(60))


@given(st.lists(st.lists(st.floats(1e-4, 1), min_size=3, max_size=3), min_size=4, max_size=4), st.floats(0.01, 2))
@settings(max_examples=20, deadline=None)
def test_nothing_saves_as_much_work_for_less_than_a_budget_of_several_windows(prices, limit):
    model, check, widths = tiny_model("llama", num_key_value_heads=4), prompt_ids(60), (4, 9, 14)
    rows = [
        ("sink_window", width, 1, kv, kv, price, price)
        for kv, of in enumerate(prices)
        for width, price in zip(widths, sorted(of, reverse=True), strict=True)
    ]
    plan = budget(model, window_plan(1, 14), pd.DataFrame(rows, columns=COLUMNS), check, limit)

    options = [
        [(0, 0.0), *((saved(width), price) for _, width, *_, kv, _, price in rows if kv == of)] for of in range(4)
    ]
    ways = [tuple(map(sum, zip(*way, strict=True))) for way in product(*options)]
    chosen = [(saved(plan.window_of(1, head)), head) for head in plan.heads.get(1, [])]
    cost = sum(next(price for gain, price in options[head] if gain == one) for one, head in chosen)
    assert cost <= limit * (1 + 1e-9)
    assert cost <= min(paid for gain, paid in ways if gain >= sum(gain for gain, _ in chosen)) * (1 + 1e-9)


PAIR = st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1), st.floats(1e-4, 1))


@given(st.lists(st.lists(PAIR, min_size=2, max_size=2), min_size=2, max_size=2), st.floats(0.01, 2), st.booleans())
@settings(max_examples=20, deadline=None)
def test_of_heads_that_share_a_kv_head_the_cheaper_may_have_a_window_alone(prices, limit, whole_groups):
    """`prices`: of both heads alone and together, by KV head and window."""
    model, check, widths = tiny_model("llama", num_key_value_heads=2), prompt_ids(60), (4, 14)
    rows = [
        ("sink_window", width, 1, 2 * kv + place, kv, price[place], price[2])
        for kv, of in enumerate(prices)
        for width, price in zip(widths, of, strict=True)
        for place in (0, 1)
    ]
    costs = pd.DataFrame(rows, columns=COLUMNS)
    plan = budget(model, window_plan(1, 14), costs, check, limit, whole_groups=whole_groups)
    chosen = {head: plan.window_of(1, head) for head in plan.heads.get(1, [])}

    def paid(kv, heads, width):
        return prices[kv][widths.index(width)][2 if len(heads) == 2 else heads[0]]

    ways = [[(0, 0.0)], [(0, 0.0)]]
    for kv, width, heads in product((0, 1), widths, [(0, 1)] if whole_groups else [(0,), (1,), (0, 1)]):
        ways[kv].append((len(heads) * saved(width), paid(kv, heads, width)))
    gain = cost = 0
    for kv in (0, 1):
        heads = [head - 2 * kv for head in chosen if head // 2 == kv]
        if heads:
            (width,) = {chosen[2 * kv + head] for head in heads}
            gain, cost = gain + len(heads) * saved(width), cost + paid(kv, heads, width)
            assert len(heads) == 2 or not whole_groups
    cheapest = min(
        sum(prices) for gains, prices in (zip(*way, strict=True) for way in product(*ways)) if sum(gains) >= gain
    )
    assert cost <= limit * (1 + 1e-9)
    assert cost <= cheapest * (1 + 1e-9)


def test_a_plan_of_several_windows_runs_from_where_it_halves_the_work_of_its_heads(toy):
    model, ids, check = toy
    plans = [window_plan(2, width) for width in (6, 20, 60)]
    costs = head_costs(model, ids, plans, seed=0)
    assert costs.groupby("window").size().to_dict() == {6: 32, 20: 32, 60: 32}
    plan = budget(model, plans[0], costs, check, 1e-2)
    widths = [plan.window_of(layer, head) for layer, heads in plan.heads.items() for head in heads]
    assert len(set(widths)) > 1
    assert mean_kl(model, plan, [check]) <= 1e-2

    def left(n):
        return sum(sum(min(i + 1, 2 + width) for i in range(n)) for width in widths) / len(widths) / (n * (n + 1) / 2)

    assert left(plan.min_tokens) == pytest.approx(0.5, abs=0.02)  # a window's own triangle is not counted
    narrow = budget(model, plans[0], costs[costs["window"] == 6], check, 1e-2)
    assert narrow.windows is None
    assert (narrow.window, narrow.min_tokens) == (6, plans[0].min_tokens)


@pytest.mark.parametrize("texts", [["one text alone"], ["a", "bbb", "cc"], ["same", "same"]])
def test_calibration_texts_share_nothing(texts):
    fit, check = calibration_texts(texts)
    assert fit
    assert check
    assert sorted((fit + check).replace("\n", "")) == sorted("".join(texts))


def test_stand_ins_are_correlated_over_heads_that_have_both(costs):
    rng = np.random.default_rng(0)
    heads = costs[costs["strategy"] == "sink_window"][["layer", "head"]].assign(
        model="toy", set="all", mean_sink_score=lambda d: rng.random(len(d)), mean_output_norm=np.nan
    )
    heads["mean_excess_score"] = costs.loc[costs["strategy"] == "sink_window", "cost"].rank().to_numpy()
    other = heads.assign(set="code", mean_sink_score=0.0)
    drains = heads.assign(value_drain=-heads["mean_excess_score"])[["model", "layer", "head", "value_drain"]]
    of_layer = pd.DataFrame([("toy", 0, np.nan, 1e9)], columns=drains.columns)
    joined = with_scores(costs.assign(model="toy"), pd.concat([other, heads]), pd.concat([drains, of_layer]))
    table = stand_in_table(joined).set_index(["strategy", "property"])
    assert table.loc[("sink_window", "value_drain"), "spearman"] == pytest.approx(-1)
    assert table.loc[("sink_window", "mean_excess_score"), "spearman"] == pytest.approx(1)
    assert abs(table.loc[("sink_window", "mean_sink_score"), "spearman"]) < 0.6
    assert table.loc[("sink_window", "mean_output_norm"), "heads"] == 0
    assert (table["heads"].drop("mean_output_norm", level=1) == 32).all()
