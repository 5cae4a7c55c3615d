"""Prefills that take turns layer by layer compute what they do alone, and each is timed by its own layers."""

import sys
from pathlib import Path

import torch
from tiny import prompt_ids, tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from plan_prefill import in_turn, layers, of_same_weights, pause, prefill

from sinkstudy.attention import Plan, optimized

PLAN = Plan({1: [0, 3], 2: [1]}, "sink_window", sink_tokens=1, window=4)


def test_prefills_in_turn_go_on_layer_by_layer_and_compute_what_they_do_alone():
    original, ids, seen, found = tiny_model("llama"), prompt_ids(40), [], {}
    with torch.inference_mode():
        alone = {"plain": prefill(original, ids)().logits}
        with optimized(original, PLAN):
            alone["plan"] = prefill(original, ids)().logits
    models = {name: of_same_weights(original) for name in alone}
    for name, model in models.items():
        pairs = zip(model.parameters(), original.parameters(), strict=True)
        assert all(one is other for one, other in pairs)
        for i, layer in enumerate(layers(model)):
            layer.register_forward_pre_hook(pause)
            layer.register_forward_hook(lambda *_, name=name, i=i: seen.append((i, name)))

    def call(name):
        found[name] = prefill(models[name], ids)().logits

    with torch.inference_mode(), optimized(models["plan"], PLAN):
        seconds = in_turn([lambda name=name: call(name) for name in alone], 2)
    assert (seconds > 0).all()
    assert not torch.equal(alone["plain"], alone["plan"])
    for name, logits in alone.items():
        torch.testing.assert_close(found[name], logits, rtol=0, atol=0)
    count = len(layers(original))
    assert [i for i, _ in seen] == 2 * [i for i in range(count) for _ in alone]


def test_every_prefill_is_charged_for_its_own_layers(monkeypatch):
    clock, models = [0.0], [of_same_weights(tiny_model("llama")) for _ in range(2)]

    def passes(seconds):
        clock[0] += seconds

    for model, seconds in zip(models, (1.0, 10.0), strict=True):
        for layer in layers(model):
            layer.register_forward_pre_hook(pause)
            layer.register_forward_hook(lambda *_, seconds=seconds: passes(seconds))
    monkeypatch.setattr("plan_prefill.time.perf_counter", lambda: clock[0])
    with torch.inference_mode():
        spent = in_turn([prefill(model, prompt_ids(8)) for model in models], 2)
    count = len(layers(models[0]))
    assert spent.tolist() == [[count, 10 * count]] * 2
