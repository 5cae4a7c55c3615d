"""Plans: what they refuse and how they are stored."""

import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.errors import StudyError


@torch.no_grad()
def test_an_empty_plan_changes_nothing():
    model, ids = tiny_model("llama"), prompt_ids(33)
    before = model(ids).logits
    with optimized(model, Plan()):
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("heads", [{3: [0]}, {0: [4]}, {-1: [0]}, {1: [-1]}])
def test_a_head_the_model_does_not_have_is_refused(heads):
    with (
        pytest.raises(StudyError, match=r"does not exist; the model has layers 0 to 2 of heads 0 to 3"),
        optimized(tiny_model("llama"), Plan(heads=heads)),
    ):
        pass


def test_a_layer_of_a_hybrid_that_does_not_attend_is_refused(refuses):
    hybrid = tiny_model("lfm2")  # Its first layer is a convolution.
    with refuses("layer 0 of the model does not attend", "1, 2"), optimized(hybrid, Plan(heads={0: [0], 1: [0]})):
        pass


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_attention_that_plans_do_not_cover_is_refused(model_type):
    model = tiny_model(model_type)
    with pytest.raises(StudyError, match="plans do not cover"), optimized(model, Plan(heads={1: [0]})):
        model(prompt_ids(5))


def test_a_plan_survives_its_file(tmp_path):
    weights = {0: {5: 0.25}, 3: {1: 0.5, 2: 0.125}}
    plan = Plan(heads={3: [2, 1], 0: [5]}, strategy="reuse", max_tokens=7, rest_weight=weights, policy="consistent")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.heads == {0: [5], 3: [1, 2]}


NO_PLANS = ["", "[]", "{", '{"heads": {"a": [1]}}', '{"heads": [1]}', '{"colour": 1}', "[" * 100_000]
NO_PLANS += ['{"heads": {"1": [0]}, "heads": {"1": [0, 1]}}', '{"heads": {"1": [1e400]}}', '{"heads": {"1": "01"}}']


@pytest.mark.parametrize("text", NO_PLANS)
def test_a_file_that_is_no_plan_is_named(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(StudyError, match=r"plan\.json"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("settings", "mentions"),
    [
        ({"strategy": "magic"}, "use one of reuse, first_value, first_value_mean, sink_window"),
        ({"heads": {0: [1]}, "first_layer_threshold": 0.9}, "not both"),
        ({"heads": {0: [1, 2]}, "rest_weight": {0: {1: 0.1}}}, "layer 0, head 2"),
        ({"heads": {0: [1]}, "rest_weight": {0: {1: -0.1}}}, "layer 0, head 1"),
        ({"heads": {0: [1]}, "rest_weight": {0: {1: float("nan")}}}, "layer 0, head 1"),
        ({"window": 0}, "at least 1"),
        ({"heads": {0: [1]}, "rest_weight": {0: {1: float("inf")}}}, "layer 0, head 1"),
        ({"heads": {0: [1.5]}}, "lists of heads"),
        ({"heads": {0: [True]}}, "lists of heads"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": "20"}, "min_tokens is '20'"),
        ({"max_tokens": "20"}, "max_tokens is '20'"),
        ({"window": 2.5}, "window is 2.5"),
        ({"strategy": "sink_window", "windows": {0: {1: 0}}}, "whole numbers from 1"),
        ({"strategy": "sink_window", "windows": {0: [4]}}, "whole numbers from 1"),
        ({"strategy": "first_value", "windows": {0: {1: 4}}}, "has no window"),
        ({"policy": [1]}, "policy is [1]"),
        ({"first_layer_threshold": float("nan")}, "first_layer_threshold is nan"),
        ({"first_layer_threshold": 1.5}, "from 0 to 1"),
        ({"first_layer_threshold": 0.5, "rest_weight": {0: {1: 0.1}}}, "leave out one"),
    ],
)
def test_settings_that_make_no_plan_are_refused(settings, mentions, refuses):
    with refuses(mentions):
        Plan(**settings)
