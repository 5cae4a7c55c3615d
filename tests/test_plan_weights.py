"""Weights that change inside a block: followed, or refused in one sentence."""

import copy
import pickle

import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized

HEADS = {0: [0, 1, 2, 3], 1: [0, 1], 2: [1, 2, 3]}
WEIGHTS = {layer: dict.fromkeys(range(4), 0.1) for layer in range(3)}
PLANS = [Plan(heads=HEADS, strategy=s, rest_weight=WEIGHTS) for s in ("first_value", "first_value_mean")]
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")


def model_with_biases():
    model = tiny_model("llama", attention_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model


def edit_in_place(model):
    with torch.no_grad():
        for layer in model.model.layers:
            for name in NAMES:
                layer.self_attn.get_parameter(f"{name}.weight").mul_(1.5)
                layer.self_attn.get_parameter(f"{name}.bias").add_(0.5)


def load_other_weights(model):
    model.load_state_dict({name: 1.5 * tensor for name, tensor in model.state_dict().items()})


def assign_other_weights(model):
    model.load_state_dict({name: 1.5 * tensor for name, tensor in model.state_dict().items()}, assign=True)


def cast(model):
    model.to(torch.float64)


def edit_in_inference_mode(model):
    with torch.inference_mode():
        model.model.layers[1].self_attn.q_proj.weight.mul_(2)
        model.model.layers[2].self_attn.o_proj.weight.mul_(2)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.strategy)
@pytest.mark.parametrize(
    "change", [edit_in_place, load_other_weights, assign_other_weights, cast, edit_in_inference_mode]
)
@torch.no_grad()
def test_changed_weights_are_followed(change, plan):
    changed, model, ids = model_with_biases(), model_with_biases(), prompt_ids(9)
    change(changed)
    with optimized(changed, plan):
        expected = changed(ids).logits
    with optimized(model, plan):
        before = model(ids).logits
        change(model)
        after = model(ids).logits
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(after.float(), before, atol=1e-8)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.strategy)
def test_gradients_reach_every_projection_as_at_the_attention_depth(plan):
    ids, gradients = prompt_ids(9), []
    for depth in ("projections", "attention"):
        model = model_with_biases()
        with optimized(model, plan, depth):
            with torch.inference_mode():
                model(ids)  # nothing that is kept from here may stand in the way of a gradient
            model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        found = gradients[0][name]
        if gradient is None or found is None:  # of a layer without any kept head, nothing reads these
            assert name.startswith(("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"))
        else:
            torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_projection_exchanged_or_hooked_into_inside_the_block_is_refused(refuses):
    model, ids = model_with_biases(), prompt_ids(9)
    attention = model.model.layers[1].self_attn
    with optimized(model, PLANS[0]):
        handle = attention.o_proj.register_forward_hook(lambda module, args, output: output)
        with refuses("o_proj of layer 1 was exchanged or hooked into"):
            model(ids)
        handle.remove()
        model(ids)
        attention.q_proj = torch.nn.Linear(32, 32)
        with refuses("q_proj of layer 1 was exchanged or hooked into"):
            model(ids)


@pytest.mark.parametrize("depth", ["projections", "attention"])
def test_a_model_under_a_plan_is_neither_copied_nor_pickled(depth, refuses):
    model, ids = model_with_biases(), prompt_ids(9)
    with optimized(model, PLANS[0], depth):
        with refuses("can be neither copied nor pickled"):
            copy.deepcopy(model)
        with refuses("can be neither copied nor pickled"):
            pickle.dumps(model)
    assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_dropout_is_refused(refuses):
    model = tiny_model("llama", attention_dropout=0.5).train()
    with optimized(model, PLANS[0]), refuses("drops attention at random"):
        model(prompt_ids(9))
