"""Where a plan of policy `budget` begins, beside bytes counted by hand at every length."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig

from sinkstudy.attention import Plan
from sinkstudy.evaluation.onset import from_where_it_pays

SINKS, WIDTH = 1, 8


@pytest.fixture(scope="module")
def model():
    """Three layers of four heads, of which two share a KV head."""
    return tiny_model("llama", num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4000)


def weights(model):
    head = model.lm_head.weight.numel()
    return head + sum(p.numel() for name, p in model.model.layers.named_parameters() if "proj" in name)


def first_that_pays(model, forgotten, calls):
    """The first length at which KV heads that keep so many of its tokens, `forgotten` = {kept tokens: KV heads}, spare
    as much as calls take that cost a thirtieth of a layer each; None up to the context."""
    for n in range(1, 4001):
        kv_head = 2 * WIDTH * n
        read = weights(model) + 3 * 2 * kv_head
        spared = sum(count * 2 * WIDTH * max(0, n - kept) for kept, count in forgotten.items())
        if spared >= calls * read / 3 / 30:
            return n
    return None


def plan_of(heads, window=16, windows=None, min_tokens=None):
    return Plan(heads, "sink_window", sink_tokens=SINKS, window=window, windows=windows, min_tokens=min_tokens)


@pytest.mark.parametrize(
    ("plan", "forgotten", "calls"),
    [
        # The KV head that is left out has a call of its own, beside that of the kept one.
        (plan_of({1: [0, 1]}), {17: 1}, 1),
        (plan_of({0: [2, 3], 2: [0, 1]}), {17: 2}, 2),
        # The last head needs a mask, too, since it shares its KV head with a kept one.
        (plan_of({1: [0, 1, 2]}), {17: 1}, 2),
        # Two windows take two calls, but no kept head needs one.
        (plan_of({0: [0, 1, 2, 3]}, windows={0: {0: 16, 1: 16, 2: 40, 3: 40}}, window=40), {17: 1, 41: 1}, 1),
    ],
)
def test_a_plan_begins_where_what_decoding_leaves_out_makes_up_for_its_calls(model, plan, forgotten, calls):
    start = first_that_pays(model, forgotten, calls)
    assert 20 < start < 400
    assert from_where_it_pays(model, plan).min_tokens == start
    # Where a prefill needs longer prompts to gain, the plan begins at those.
    later = plan_of(plan.heads, plan.window, plan.windows, min_tokens=start + 5)
    assert from_where_it_pays(model, later) == later
    # A plan for prompts up to some length may cover none that is long enough.
    assert from_where_it_pays(model, replace(plan, max_tokens=start)).min_tokens == start
    assert from_where_it_pays(model, replace(plan, max_tokens=start - 1)).heads == {}


def test_a_plan_that_adds_no_call_begins_where_a_prefill_gains(model):
    plan = plan_of({1: [0, 1, 2, 3]}, min_tokens=31)
    assert from_where_it_pays(model, plan) == plan
    empty = plan_of({}, min_tokens=31)
    assert from_where_it_pays(model, empty) == empty


def test_a_plan_that_decoding_gains_nothing_by_has_no_heads(model):
    """Of each KV head one reader is kept, so that the whole cache stays and has to be read."""
    plan = plan_of({0: [0, 2], 1: [1]}, windows={0: {0: 8, 2: 16}, 1: {1: 16}})
    assert first_that_pays(model, {}, 2) is None
    found = from_where_it_pays(model, plan)
    assert found.heads == {}
    assert found.windows is None


def test_in_a_large_model_a_call_takes_less_than_that_share_of_a_layer():
    """Of Llama-3.1-8B's shape, without weights: 700,000 bytes are far less than a thirtieth of any layer."""
    config = LlamaConfig(
        **{"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
    )
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plan = plan_of({layer: range(16) for layer in range(32)}, window=511)  # four of eight KV heads
    bytes_left_out = 4 * 2 * 128 * 2
    assert from_where_it_pays(large, plan).min_tokens == SINKS + 511 + -(-700_000 // bytes_left_out)
