"""The one context manager that sets a model's attention implementation: nested, in threads, and left by an error."""

import threading

import pytest
import torch
from in_threads import in_threads
from tiny import prompt_ids, tiny_model
from transformers import AutoModelForCausalLM

from sinkstudy.attention import Plan, optimized
from sinkstudy.capture import sink_mass
from sinkstudy.models.implementation import attention_implementation

PLAN = Plan(heads={1: [0, 1]})


@pytest.mark.parametrize("depth", ["projections", "attention"])
def test_sink_mass_of_a_model_under_a_plan_is_refused(depth, refuses):
    model, ids = tiny_model("llama"), prompt_ids(9)
    expected = sink_mass(model, ids)
    with optimized(model, PLAN, depth), refuses("already runs under a plan"):
        sink_mass(model, ids)
    assert torch.equal(sink_mass(model, ids), expected)


def test_sink_mass_in_many_threads_leaves_the_model_as_it_was():
    model, prompts = tiny_model("llama"), [prompt_ids(n) for n in range(5, 13)]
    before, expected = model(prompts[0]).logits, [sink_mass(model, ids) for ids in prompts]
    found = in_threads(len(prompts), 5, lambda i: sink_mass(model, prompts[i]))
    for masses, mass in zip(found, expected, strict=True):
        assert all(torch.equal(one, mass) for one in masses)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(prompts[0]).logits, before)


def test_a_plan_refuses_other_threads_instead_of_making_them_wait():
    model, said = tiny_model("llama"), []

    def other():
        try:
            sink_mass(model, prompt_ids(5))
        except ValueError as error:
            said.append(str(error))

    with optimized(model, PLAN):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert said == ["this model already runs under a plan; leave that block first."]


def test_another_thread_waits_for_a_block_to_end():
    model, order = tiny_model("llama"), []

    def other():
        with attention_implementation(model, "sdpa"):
            order.append("other")

    with attention_implementation(model, "eager"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join(timeout=60)
    assert order == ["first", "other"]
    assert model.config._attn_implementation == "sdpa"


def test_blocks_nest_and_an_error_puts_everything_back():
    model = tiny_model("llama")
    with attention_implementation(model, "eager"):
        with pytest.raises(IndexError), attention_implementation(model, "sdpa"):
            model(torch.tensor([[10_000]]))
        assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="no_such"), attention_implementation(model, "no_such"):
        pass
    with optimized(model, PLAN):
        pass
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_attends_by_itself_is_left_alone():
    model = tiny_model("bloom")
    before = model.config._attn_implementation
    with attention_implementation(model, "sdpa"):
        assert model.config._attn_implementation == before


def test_what_is_no_model_of_transformers_is_named(refuses):
    with refuses("Sequential is no Transformers model"):
        sink_mass(torch.nn.Sequential(tiny_model("llama")), prompt_ids(5))


def test_models_that_share_a_configuration_are_refused_in_one_sentence(refuses):
    model = tiny_model("llama")
    other = AutoModelForCausalLM.from_config(model.config)
    other.config = other.model.config = model.config
    for module in other.modules():
        if hasattr(module, "layer_idx"):
            module.config = model.config
    with optimized(model, PLAN), refuses("shares its configuration"):
        other(prompt_ids(5))
