"""A policy's heads beside as many others of their layers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.evaluation.benchmark import windows
from sinkstudy.evaluation.quality import compare
from sinkstudy.evaluation.skipping import (
    control_heads,
    random_heads,
    skipping_table,
    with_heads,
)
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.stand_ins import with_scores

PLAN = Plan(heads={1: [0, 1], 2: [3]}, policy="by hand", max_tokens=30)
TOKENS = [1, *np.random.default_rng(0).integers(3, 99, 200).tolist()]
HEADS = pd.DataFrame(
    [
        (layer, head, score, norm)
        for layer in range(3)
        for head, (score, norm) in enumerate(zip("dabc", "abcd", strict=True))
    ],
    columns=["layer", "head", "mean_sink_score", "mean_output_norm"],
)
ASKED = HEADS, [8, 24, 64], Resampling(200, 0, 0)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table(model):
    again = Plan(heads=PLAN.heads, policy="again", max_tokens=30)
    long = Plan(heads={1: [0]}, min_tokens=65, policy="long")
    plans = [Plan(first_layer_threshold=0.5, policy="by input"), PLAN, again, Plan(policy="nothing"), long]
    return skipping_table(model, "tiny", TOKENS, plans, HEADS.assign(value_drain=float("nan")), *ASKED[1:])


def test_a_control_takes_as_many_heads_of_the_same_layers():
    assert control_heads(PLAN, HEADS, "mean_sink_score") == {1: [1, 2], 2: [1]}
    assert control_heads(Plan(heads={0: [0, 1, 2, 3]}), HEADS, "mean_sink_score") == {0: [1, 2, 3, 0]}
    drawn = [random_heads(PLAN, 4, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(set(one[1])) == 2 and len(one[2]) == 1 and one.keys() == {1, 2} for one in drawn)
    assert {one[2][0] for one in drawn} == {0, 1, 2, 3}


def test_heads_drawn_instead_take_over_the_windows():
    plan = Plan(heads=PLAN.heads, strategy="sink_window", window=8, windows={1: {0: 3, 1: 5}, 2: {0: 9}})
    one = with_heads(plan, {1: [3, 2], 2: [1]})
    assert one.heads == {1: [2, 3], 2: [1]}
    assert one.windows == {1: {2: 5, 3: 3}, 2: {1: 8}}
    assert with_heads(replace(plan, windows=None), {1: [3, 2], 2: [1]}).windows is None


def test_the_most_drained_heads_are_found_in_the_table_of_activations():
    rows = [("m", p, 1, head, drain + p) for p in (0.0, 0.5) for head, drain in enumerate([0.9, 0.1, 0.8, 0.2])]
    activations = pd.DataFrame(
        [*rows, ("m", 0.0, 1, None, 0.5)], columns=["model", "prompt", "layer", "head", "value_drain"]
    )
    heads = HEADS.assign(model="m", set="all", mean_excess_score=0.0)
    drained = with_scores(heads[["model", "layer", "head"]], heads, activations)
    assert drained.query("layer == 1")["value_drain"].tolist() == pytest.approx([1.15, 0.35, 1.05, 0.45])
    assert control_heads(Plan(heads={1: [0, 2]}), drained, "value_drain") == {1: [1, 3]}


def test_every_policy_has_a_row_per_choice_of_heads_at_its_longest_length(table):
    choices = ["policy", "no_sinks", "smallest_output", "random"]  # no value drain is given
    assert table[["policy", "chosen_by"]].to_numpy().tolist() == [[p, c] for p in ("by hand", "again") for c in choices]
    assert (table["n_tokens"] == 24).all()
    assert (table["heads_replaced"] == 3).all()
    assert table["shared_heads"].tolist()[:3] == [3, 1, 2]
    pd.testing.assert_frame_equal(
        table[:4].drop(columns="policy"), table[4:].drop(columns="policy").reset_index(drop=True)
    )


def test_costs_are_means_over_windows_with_what_they_are_beyond_the_policy(model, table):
    texts = windows(TOKENS, 24, table["texts"].iloc[0]).split(1)

    def costs(heads):
        found = []
        for ids in texts:
            with torch.inference_mode():
                before = model(ids).logits
                with optimized(model, Plan(heads=heads)):
                    found.append(compare(before, model(ids).logits, ids))
        return np.array([(one.kl, one.perplexity_ratio) for one in found]).T

    (kl, ratio), (other_kl, other_ratio) = costs(PLAN.heads), costs({1: [1, 2], 2: [1]})
    own, other = table.iloc[0], table.iloc[1]
    # Both run the same operations, in another order where layers are pruned: float32 roundings of logits near 1.
    assert own["kl"] == pytest.approx(kl.mean(), rel=1e-3)
    assert other["kl_beyond"] == pytest.approx((other_kl - kl).mean(), rel=1e-3)
    assert other["perplexity_ratio"] == pytest.approx(np.exp(np.log(other_ratio).mean()), rel=1e-4)
    assert other["perplexity_beyond"] == pytest.approx(np.exp(np.log(other_ratio / ratio).mean()), rel=1e-4)
    assert (own["kl_beyond"], own["perplexity_beyond"]) == (0, 1)
    for _, row in table.iterrows():
        for measure in ("kl", "perplexity_ratio", "kl_beyond", "perplexity_beyond"):
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    assert (table["kl_low"] < table["kl_high"]).all()


def test_plans_that_name_no_heads_or_no_length_give_an_empty_table(model):
    plans = [Plan(policy="nothing"), Plan(first_layer_threshold=0.5), Plan(heads={1: [0]}, max_tokens=4)]
    assert skipping_table(model, "tiny", TOKENS, plans, *ASKED).empty
