"""The price of a plan: predictions, whole answers, and what policies make of it."""

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from arithmetic import roundings, truth_of
from readable import readable_logits
from tiny import prompt_ids, tiny_model
from torch.nn.functional import cross_entropy

from sinkstudy.attention import Plan, optimized
from sinkstudy.evaluation.answers import answers_table
from sinkstudy.evaluation.policies import consistent, layerwise, rest_weight
from sinkstudy.evaluation.quality import compare, quality_table
from sinkstudy.evaluation.variants import at_work, variants_of

PLAN = Plan(heads={1: [0, 1], 2: [3]}, policy="by hand", max_tokens=12)
TEXTS = [("a", prompt_ids(9)), ("a", prompt_ids(14, seed=1)), ("b", prompt_ids(5, seed=2))]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def variants(model):
    return variants_of(model, [PLAN, Plan(policy="nothing")], ["first_value", "reuse"])


def kl_by_hand(model, plan, ids):
    """KL divergence of every position, (query,)."""
    p, q = (torch.log_softmax(readable_logits(model, ids, one)[0].double(), -1) for one in (Plan(), plan))
    return (p.exp() * (p - q)).sum(-1)


def true_kl(model, *plans_and_ids):
    """Mean over the positions of all, in float64, and how far it may be off where logits are float32."""
    truths = [truth_of(kl_by_hand, model, *pair) for pair in plans_and_ids]
    return torch.cat([truth.value for truth in truths]).mean().item(), max(truth.allowed for truth in truths)


def test_quality_of_hand_computed_distributions():
    reference = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]], dtype=torch.float64))
    modified = torch.log(torch.tensor([[[0.25, 0.75], [0.8, 0.2]]], dtype=torch.float64))
    ids = torch.tensor([[0, 1]])
    quality = compare(reference, modified, ids)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)
    # Some ten sums, products and logarithms, none of which is larger than 2.
    assert quality.kl == pytest.approx((first + second) / 2, abs=2 * roundings(10, torch.float64))
    assert quality.top1_agreement == 0.5  # a tie goes to the first token, so the first position differs
    assert quality.top5_agreement == 1.0  # there are only two tokens
    assert quality.perplexity_ratio == pytest.approx(0.5 / 0.75)


def test_top5_agreement_is_the_share_of_tokens_that_both_name():
    reference, modified = torch.arange(10.0), torch.arange(10.0)
    modified[[9, 8]] = -1.0  # 7 6 5 4 3 beside 9 8 7 6 5
    quality = compare(reference[None, None], modified[None, None], torch.tensor([[0]]))
    assert quality.top5_agreement == pytest.approx(3 / 5)


def test_quality_is_pooled_over_positions_per_set_and_length(model, variants):
    table = quality_table(model, "tiny", TEXTS, variants, [5, 9, 14])
    assert not table.duplicated(["set", "n_tokens", "strategy", "policy"]).any()
    rows = table.set_index(["set", "n_tokens", "strategy"])
    # Beyond max_tokens nothing is replaced, so nothing but the unmodified model is run.
    assert table.loc[table["n_tokens"] == 14, "strategy"].tolist() == ["sdpa"]
    assert len(table) == 3 * 3 + 1
    kl, allowed = true_kl(model, *((PLAN, ids[:, :5]) for _, ids in TEXTS[:2]))
    row = rows.loc[("a", 5, "first_value")]
    assert row["kl"] == pytest.approx(kl, abs=allowed)
    assert (row["texts"], row["heads_replaced"]) == (2, 3)
    unmodified = rows.loc[("a", 9, "sdpa")]

    def loss(model):
        parts = [(readable_logits(model, ids[:, :9], Plan())[0, :8], ids[0, 1:9]) for _, ids in TEXTS[:2]]
        return torch.stack([cross_entropy(logits.double(), following) for logits, following in parts]).mean()

    expected = truth_of(loss, model)
    assert math.log(unmodified["perplexity"]) == pytest.approx(expected.value.item(), abs=expected.allowed)
    assert (unmodified["kl"], unmodified["perplexity_ratio"], unmodified["heads_replaced"]) == (0, 1, 0)


def test_plans_that_do_the_same_are_run_once_and_stand_in_both_rows(model):
    same = [Plan(heads=PLAN.heads, policy="one"), Plan(heads=PLAN.heads, policy="other"), Plan(policy="nothing")]
    variants = variants_of(model, same, ["first_value"])
    ids = TEXTS[0][1]
    (found,) = at_work(model, variants, ids)
    assert found.policies == ["one", "other"]
    assert found.heads == {1: (0, 1), 2: (3,)}
    table = quality_table(model, "tiny", [("a", ids)], variants, [9])
    assert table["policy"].tolist() == ["none", "one", "other"]
    assert table["kl"].iloc[1] == table["kl"].iloc[2] > 0


def test_layers_whose_sliding_window_a_text_fills_replace_nothing():
    model = tiny_model("gemma3_text")  # All layers see 7 tokens.
    variants = variants_of(model, [Plan(heads={1: [0]})], ["first_value"])
    assert at_work(model, variants, TEXTS[0][1][:, :6])[0].heads == {1: (0,)}
    table = quality_table(model, "tiny", [("a", TEXTS[0][1])], variants, [6, 7])
    assert table.groupby("n_tokens")["heads_replaced"].max().tolist() == [1, 0]


def test_plans_with_other_weights_are_not_the_same(model):
    weighted = [
        Plan(heads={1: [0]}, strategy="first_value_mean", rest_weight={1: {0: weight}}, policy=str(weight))
        for weight in (0.1, 0.2)
    ]
    assert len(at_work(model, variants_of(model, weighted, ["first_value_mean"]), TEXTS[0][1])) == 2


def test_heads_decided_by_the_input_are_counted_on_that_input(model):
    deciding = variants_of(
        model, [Plan(first_layer_threshold=share) for share in (0.1, 1.0)], ["first_value", "sink_window"]
    )
    found = at_work(model, deciding, TEXTS[1][1])
    assert {one.variant.plan.first_layer_threshold for one in found} == {0.1}  # no head reaches 1
    assert {one.variant.strategy for one in found} == {"first_value", "sink_window"}


def test_answers_are_those_of_prompts_generated_alone(model, variants):
    prompts = [(f"p{i}", s, ids) for i, (s, ids) in enumerate(TEXTS)]
    deciding = variants_of(model, [Plan(first_layer_threshold=0.1)], ["first_value"])
    table = answers_table(model, "tiny", prompts, [*variants, *deciding], 10)
    # Heads decided from the input would be decided for a whole batch; p1 is longer than max_tokens.
    assert table[["prompt", "strategy"]].drop_duplicates().shape == (2 * 2, 2)
    assert set(table["prompt"]) == {"p0", "p2"}
    for row in table.itertuples():
        ids = dict((p, i) for p, _, i in prompts)[row.prompt]
        settings = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10}
        plain = model.generate(ids, **settings)[0, ids.shape[1] :]
        plan = next(v.plan for v in variants if v.strategy == row.strategy)
        with optimized(model, plan):
            other = model.generate(ids, **settings)[0, ids.shape[1] :]
        assert row.identical == torch.equal(plain, other)
        first = next((i + 1 for i in range(10) if plain[i] != other[i]), None)
        assert row.departs_at == first or (first is None and np.isnan(row.departs_at))
    assert not table["identical"].all()


def test_weights_that_a_strategy_does_not_read_make_no_other_plan(model):
    weights = {1: {0: 0.1}}
    same = [Plan(heads={1: [0]}, rest_weight=weights, policy="with"), Plan(heads={1: [0]}, policy="without")]
    (found,) = at_work(model, variants_of(model, same, ["sink_window"]), TEXTS[0][1])
    assert found.policies == ["with", "without"]


def test_plans_are_priced_at_the_lengths_they_cover(model):
    long, short = (replace(PLAN, policy=name, min_tokens=low, max_tokens=None) for name, low in (("l", 10), ("s", 2)))
    variants = variants_of(model, [long, short], ["first_value"])
    assert [one.policies for one in at_work(model, variants, prompt_ids(9))] == [["s"]]
    assert [one.policies for one in at_work(model, variants, prompt_ids(10))] == [["l", "s"]]
    prompts = [("nine", "a", prompt_ids(9)), ("twelve", "a", prompt_ids(12))]
    answers = answers_table(model, "tiny", prompts, variants, 2)
    assert set(answers[["policy", "prompt"]].itertuples(index=False, name=None)) == {
        ("l", "twelve"),
        ("s", "nine"),
        ("s", "twelve"),
    }


def test_a_plan_fitted_to_a_strategy_runs_under_no_other(model):
    plans = [PLAN, replace(PLAN, policy="budget", strategy="sink_window")]
    made = variants_of(model, plans, ["first_value", "sink_window"])
    assert [(one.policy, one.strategy) for one in made] == [
        ("by hand", "first_value"),
        ("by hand", "sink_window"),
        ("budget", "sink_window"),
    ]


def test_a_plan_that_never_runs_is_no_free_lunch(model, variants, monkeypatch, refuses):
    monkeypatch.setattr("sinkstudy.evaluation.quality.running", lambda model, variant: nullcontext())
    with refuses("first_value", "changes no logit"):
        quality_table(model, "tiny", TEXTS, variants, [9])
    wide = variants_of(model, [replace(PLAN, window=9)], ["sink_window"])  # it spans the text and may change nothing
    assert len(quality_table(model, "tiny", TEXTS, wide, [9])) == 2


def test_a_loss_beyond_all_numbers_is_an_infinite_perplexity():
    logits = torch.zeros(1, 3, 4)
    logits[..., 0] = 3000.0
    wrong = torch.tensor([[0, 1, 1]])
    assert compare(logits, logits, wrong).perplexity == np.inf
    assert compare(torch.zeros(1, 3, 4), logits, wrong).perplexity_ratio == np.inf


def scores(rows):
    return pd.DataFrame(rows, columns=["prompt", "n_tokens", "layer", "head", "sink_score", "is_sink"])


def test_consistent_takes_heads_that_are_sinks_in_enough_prompts_of_its_lengths():
    table = scores(
        [
            *(("tiny", 5, 0, head, 0.99, True) for head in range(3)),
            *(("short", 30, 0, head, s, s >= 0.9) for head, s in enumerate((0.95, 0.2, 0.97))),
            *(("long", 60, 0, head, s, s >= 0.9) for head, s in enumerate((0.92, 0.95, 0.5))),
            *(("huge", 600, 0, head, s, s >= 0.9) for head, s in enumerate((0.4, 0.4, 0.4))),
        ]
    )
    table = [part for _, part in table.groupby("prompt")]
    plan = consistent(table, share=0.6, min_tokens=24, max_tokens=None)
    assert plan.heads == {0: [0]}
    assert plan.max_tokens == 60  # at 600 tokens its head is no sink
    assert consistent(table, 0.5, 24, 60).heads == {0: [0, 1, 2]}
    assert consistent(table, 0.5, 24, 60).max_tokens == 60
    assert consistent(table, 0.5, 1000, None).is_empty
    assert consistent(table, 0.99, 24, None).is_empty


@pytest.mark.parametrize("r", [0.0, 1e-4, 0.01, 0.3, 1.0])
def test_the_rest_weight_gives_the_score_it_was_found_from(r):
    n = np.array([24, 200])
    score = np.array([np.mean([1 / (1 + r * i) for i in range(k)]) for k in n])
    np.testing.assert_allclose(rest_weight(score, n), r, atol=2**-39)  # it halves an interval of 1 forty times


def test_a_score_below_uniform_attention_counts_as_uniform():
    assert rest_weight(np.array([0.01]), np.array([24]))[0] == pytest.approx(1)


def test_layerwise_adds_the_cheapest_layers_while_the_budget_lasts(model):
    plan = Plan(heads={0: [0], 1: [0, 1], 2: [3]}, policy="consistent")
    prompts = [prompt_ids(9), prompt_ids(7, seed=3)]

    def cost(layers):
        part = Plan(heads={layer: plan.heads[layer] for layer in layers})
        return true_kl(model, *((part, ids) for ids in prompts))

    def enough(layers):
        return sum(cost(layers))  # the cost, and what rounding may add to it

    per_head = {layer: cost([layer])[0] / len(plan.heads[layer]) for layer in plan.heads}
    order = sorted(per_head, key=per_head.get)
    assert layerwise(model, plan, prompts, budget=enough(order[:1])).heads.keys() == {order[0]}
    expected = set(order[:2]) if cost(order)[0] > enough(order[:2]) else set(order)
    chosen = layerwise(model, plan, prompts, budget=enough(order[:2]))
    assert set(chosen.heads) == expected
    assert chosen.policy == "layerwise"
    assert layerwise(model, plan, prompts, budget=0).is_empty
    assert layerwise(model, plan, prompts, budget=100).heads == plan.heads
