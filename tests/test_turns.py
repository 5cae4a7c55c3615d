"""Passes that take turns layer by layer compute what they do alone, and each is charged for its own layers."""

import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan
from sinkstudy.evaluation.timing import Alternative, Rounds, interleaved
from sinkstudy.evaluation.turns import in_turn, pause, pausing_before, twin
from sinkstudy.evaluation.variants import EAGER, SDPA, Variant, running
from sinkstudy.models.layers import attention_modules

PLAN = Plan({1: [0, 3], 2: [1]}, "sink_window", sink_tokens=1, window=4)
WAYS = [EAGER, SDPA, Variant("sink_window", "by hand", PLAN, "projections"), SDPA]
CPU = torch.device("cpu")


def order():
    return np.random.default_rng(0)


def blocks(model):
    return list(dict.fromkeys(layer.block for layer in attention_modules(model).values()))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neo", "bloom", "gemma3_text", "lfm2"])
def test_a_twin_shares_every_weight_and_predicts_the_same(model_type):
    model, ids = tiny_model(model_type), prompt_ids(12)
    other = twin(model)
    assert other is not model
    assert other.config is not model.config
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert one is same
    with torch.inference_mode():
        torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt2"])
def test_passes_in_turn_go_on_layer_by_layer_and_compute_what_they_do_alone(model_type):
    model, ids, seen, found, alone = tiny_model(model_type), prompt_ids(40), [], {}, []
    for way in WAYS:
        with running(model, way), torch.inference_mode():
            alone.append(model(ids, use_cache=False).logits)
    twins = [twin(model) for _ in WAYS]
    for i, one in enumerate(twins):
        for layer, block in enumerate(blocks(one)):
            block.register_forward_hook(lambda *_, i=i, layer=layer: seen.append((layer, i)))

    def call(i):
        with running(twins[i], WAYS[i]), pausing_before(blocks(twins[i])):
            found[i] = twins[i](ids, use_cache=False).logits

    with torch.inference_mode():
        in_turn([lambda i=i: call(i) for i in range(len(WAYS))], order())
    assert not torch.equal(alone[1], alone[2])
    for i, logits in enumerate(alone):
        torch.testing.assert_close(found[i], logits, rtol=0, atol=0)
    layers = len(blocks(model))
    assert [layer for layer, _ in seen] == [layer for layer in range(layers) for _ in WAYS]
    assert len(set(seen)) == layers * len(WAYS)
    assert len({tuple(i for layer, i in seen if layer == one) for one in range(layers)}) > 1, "the order is drawn anew"


def test_every_call_is_charged_for_its_own_turns(monkeypatch):
    clock = [0.0]

    def work(turns, seconds):
        for _ in range(turns):
            clock[0] += seconds
            pause()
        clock[0] += seconds / 2

    monkeypatch.setattr("sinkstudy.evaluation.turns.time.perf_counter", lambda: clock[0])
    spent = in_turn([lambda: work(3, 1.0), lambda: work(1, 10.0), lambda: work(0, 100.0)], order())
    assert spent.tolist() == [3.5, 15.0, 50.0]


def test_what_slows_the_machine_for_a_time_slows_all_alike(monkeypatch):
    """A machine ten times slower from some moment on: whole passes differ tenfold, passes in turn by a turn of 100."""
    clock, turns, slow_from = [0.0], 100, 90.0

    def work():
        for _ in range(turns):
            clock[0] += 1.0 if clock[0] < slow_from else 10.0
            pause()

    monkeypatch.setattr("sinkstudy.evaluation.turns.time.perf_counter", lambda: clock[0])
    one, other = in_turn([work, work], order())
    assert 0.98 <= one / other <= 1.02


def test_a_fault_of_one_call_is_that_of_all():
    def fault():
        pause()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        in_turn([lambda: pause(), fault], order())


def test_outside_of_turns_nothing_pauses():
    model = tiny_model("llama")
    with pausing_before(blocks(model)), torch.inference_mode():
        within = model(prompt_ids(8)).logits
    with torch.inference_mode():
        torch.testing.assert_close(within, model(prompt_ids(8)).logits, rtol=0, atol=0)
    assert not any(block._forward_pre_hooks for block in blocks(model))


@pytest.mark.parametrize(("long", "sequence"), [(0.01, "layers"), (10.0, "calls")])
def test_long_calls_are_timed_layer_by_layer_and_short_ones_whole(monkeypatch, long, sequence):
    monkeypatch.setattr("sinkstudy.evaluation.timing._WARM_SECONDS", long)
    events = []

    def alternative(name):
        layers = [torch.nn.Identity(), torch.nn.Identity()]

        def call():
            for i, layer in enumerate(layers):
                layer(None)
                events.append(f"{name}{i}")
                time.sleep(0.01)

        return Alternative(nullcontext, call, seconds=0.02, layers=layers)

    samples = interleaved([alternative("a"), alternative("b")], Rounds(6), CPU, calls_per_sample=1)
    assert samples.shape == (6, 2)
    pairs = [set(events[i : i + 2]) for i in range(len(events) - 24, len(events), 2)]
    together = {"layers": [{"a0", "b0"}, {"a1", "b1"}], "calls": [{"a0", "a1"}, {"b0", "b1"}]}[sequence]
    assert all(pair in together for pair in pairs)
