"""Replaced heads cut out of the projections and the KV cache: every class in the table, and how a block is left."""

import threading
from dataclasses import replace

import pytest
import torch
from arithmetic import assert_within, is_within, truth_of
from readable import readable_logits
from tiny import prompt_ids, tiny_model
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, StaticCache

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.cache import SplitKVCache, cache_bytes
from sinkstudy.attention.projections import PRUNABLE
from sinkstudy.errors import StudyError

# Model types whose attention class is in the table, set so that their layers do not slide.
FULL = {
    "gemma3_text": {"layer_types": ["full_attention"] * 3},
    "glm4": {},
    "granite": {"attention_bias": True},
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": None},
    "mixtral": {},
    "phi": {},
    "qwen2": {"use_sliding_window": False, "layer_types": None},
    "qwen3": {},
    "qwen3_moe": {},
    "starcoder2": {"sliding_window": None},
}
HEADS = {0: [0, 1, 2, 3], 1: [0, 1], 2: [1, 2, 3]}
WEIGHTS = {layer: dict.fromkeys(range(4), 0.1) for layer in range(3)}
PLANS = {
    strategy: Plan(heads=HEADS, strategy=strategy, rest_weight=WEIGHTS, sink_tokens=2, window=4)
    for strategy in ("first_value", "first_value_mean", "sink_window", "reuse")
}


def full_model(model_type):
    model = tiny_model(model_type, **FULL[model_type])
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0, 0.3)
    return model


@pytest.mark.parametrize("strategy", PLANS)
@pytest.mark.parametrize("model_type", FULL)
@torch.no_grad()
def test_a_pruned_model_equals_one_whose_attention_alone_is_left_out(model_type, strategy):
    model, ids = full_model(model_type), prompt_ids(15)
    expected = truth_of(readable_logits, model, ids, PLANS[strategy])
    with optimized(model, PLANS[strategy], "attention"):
        assert_within(model(ids).logits, expected)
    with optimized(model, PLANS[strategy]) as run:
        assert sorted(run.pruned) == ([0, 1, 2] if strategy.startswith("first_value") else [])
        cache = model(ids[:, :12]).past_key_values
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(12, 15)]
        assert_within(model(ids, use_cache=False).logits, expected)
    assert_within(torch.cat(steps, 1), expected[:, 12:])


def test_every_class_in_the_table_is_tested():
    models = {type(tiny_model(name, **FULL[name]).model.layers[0].self_attn).__name__ for name in FULL}
    assert models == set(PRUNABLE)


@pytest.mark.parametrize("model_type", ["olmo2", "gpt_neox", "phi3", "cohere", "mistral", "opt"])
@torch.no_grad()
def test_other_models_run_at_the_attention_depth(model_type):
    model, ids = tiny_model(model_type), prompt_ids(6)  # shorter than mistral's window of 7
    results = []
    for depth in ("projections", "attention"):
        with optimized(model, PLANS["first_value"], depth) as run:
            assert not run.pruned
            results.append(model(ids).logits)
    assert torch.equal(*results)
    assert not torch.equal(results[0], model(ids).logits)


@torch.no_grad()
def test_a_sliding_layer_runs_unchanged_once_its_window_is_full():
    model = tiny_model("mistral")
    for n, changed in ((6, True), (7, False), (20, False)):
        before = truth_of(readable_logits, model, prompt_ids(n), Plan())
        with optimized(model, PLANS["first_value"]):
            assert is_within(model(prompt_ids(n)).logits, before) is not changed


@torch.no_grad()
def test_the_cache_keeps_only_kv_heads_that_are_read():
    model, ids = full_model("llama"), prompt_ids(50)  # 2 KV heads of width 8, each read by 2 query heads
    whole = cache_bytes(model(ids).past_key_values)
    assert whole == 3 * 2 * 2 * 8 * 50 * 4
    with optimized(model, PLANS["first_value"]):
        layers = model(ids).past_key_values.layers
    assert [layer.keys.shape[1] if layer.is_initialized else 0 for layer in layers] == [0, 1, 1]
    assert [sum(t.numel() for t in layer.state.values()) for layer in layers] == [32, 32, 32]  # a vector of the output
    with optimized(model, PLANS["first_value_mean"]):
        cache = model(ids).past_key_values
    assert cache_bytes(cache) < 0.4 * whole


@pytest.mark.parametrize(("strategy", "numbers"), [("reuse", [240, 240, 240]), ("sink_window", [12, 126, 126])])
@torch.no_grad()
def test_kv_heads_that_only_replaced_heads_read_keep_what_the_strategy_needs(strategy, numbers):
    """Pairs of vectors of width 8 in the cache: keys and values of 120 tokens, or of the first two and last four."""
    model, ids = full_model("llama"), prompt_ids(120)
    with optimized(model, PLANS[strategy]):
        cache = model(ids[:, :1]).past_key_values
        for i in range(1, 120):
            model(ids[:, i : i + 1], past_key_values=cache)
    assert [sum(t.numel() for t in held(layer)) // 16 for layer in cache.layers] == numbers
    with optimized(model, PLANS[strategy]):  # a prefill holds no more than it says either
        layers = model(ids).past_key_values.layers[1:]
    for tensor in (t for layer in layers for t in held(layer)):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def held(layer):
    own = [t for recent in getattr(layer, "own", ()) for t in recent.held]
    return [layer.keys, layer.values, *getattr(layer, "state", {}).values(), *own]


@torch.no_grad()
def test_projections_read_only_what_the_strategy_needs():
    """Widths of every linear layer that is applied to layer 1's input or output, two of whose four heads are kept."""
    model, ids = full_model("llama"), prompt_ids(5)
    sizes = []

    class Applied(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.linear:
                sizes.append((args[0].shape[1], args[1].shape[1], args[1].shape[0]))
            return function(*args, **kwargs or {})

    plan = Plan(heads={1: [0, 1]})
    with optimized(model, plan), Applied():
        model(ids)
    whole = [(5, 32, 32), (5, 32, 16), (5, 32, 16), (5, 32, 32)]  # query, key, value, output
    first_value = [(1, 32, 8), (1, 8, 32)]
    pruned = [(5, 32, 16), (5, 32, 8), (5, 32, 8), (5, 16, 32)]
    attention = [size for size in sizes if 48 not in size[1:] and 99 not in size[1:]]  # no feed-forward, no head
    assert attention == whole + first_value + pruned + whole


@pytest.mark.parametrize("strategy", PLANS)
@torch.no_grad()
def test_leaving_the_block_restores_the_model_exactly(strategy):
    model, ids = full_model("llama"), prompt_ids(9)
    before, modules = model(ids).logits, dict(model.named_modules())
    weights = {name: (p, p.clone()) for name, p in model.named_parameters()}
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    with optimized(model, PLANS[strategy]):
        assert not torch.equal(model(ids).logits, before)
        assert dict(model.named_modules()) == modules
    with pytest.raises(RuntimeError, match="on purpose"), optimized(model, PLANS[strategy]):
        raise RuntimeError("on purpose")
    with pytest.raises(IndexError), optimized(model, PLANS[strategy]):
        model(torch.tensor([[10_000]]))
    assert dict(model.named_modules()) == modules
    assert all(p is weights[name][0] and torch.equal(p, weights[name][1]) for name, p in model.named_parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), plain)


@pytest.mark.parametrize("strategy", PLANS)
@torch.no_grad()
def test_generate_greedily_with_beams_and_from_a_thread(strategy):
    model = full_model("llama")
    ids = torch.cat([prompt_ids(9), prompt_ids(9, seed=1)])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # left padding
    for settings in ({}, {"num_beams": 3}):
        results = []
        for depth in ("projections", "attention"):
            with optimized(model, PLANS[strategy], depth):
                thread = threading.Thread(
                    target=lambda settings=settings, results=results: results.append(
                        model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **settings)
                    )
                )
                thread.start()
                thread.join()
        assert torch.equal(*results)
        assert results[0].shape == (2, 21)


@torch.no_grad()
def test_a_prompt_beyond_max_tokens_runs_unchanged_and_so_does_its_decoding():
    model, ids = full_model("llama"), prompt_ids(14)
    for n, changed in ((10, True), (11, False)):
        expected = truth_of(readable_logits, model, ids, Plan())[:, n:]
        for depth in ("projections", "attention"):
            with optimized(model, Plan(heads=HEADS, max_tokens=10), depth):
                cache = model(ids[:, :n]).past_key_values
                steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(n, 14)]
            assert is_within(torch.cat(steps, 1), expected) is not changed


@pytest.mark.parametrize("strategy", PLANS)
@torch.no_grad()
def test_a_reduced_cache_is_continued_in_another_block_beyond_max_tokens(strategy):
    model, ids = full_model("llama"), prompt_ids(14)
    plan = replace(PLANS[strategy], max_tokens=10)
    expected = truth_of(readable_logits, model, ids, PLANS[strategy])[:, 10:]
    with optimized(model, plan):
        cache = model(ids[:, :10]).past_key_values
    with optimized(model, plan):
        continued = model(ids[:, 10:], past_key_values=cache).logits
    assert_within(continued, expected)


@torch.no_grad()
def test_a_cache_filled_before_the_block_is_continued_at_the_attention_depth():
    model, ids = full_model("llama"), prompt_ids(12)
    plan = Plan(heads={2: [0, 1]})  # the last layer, so that the cache is the same
    cache = model(ids[:, :11]).past_key_values
    with optimized(model, plan):
        step = model(ids[:, 11:], past_key_values=cache).logits
    assert_within(step, truth_of(readable_logits, model, ids, plan)[:, 11:])


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("strategy", PLANS)
@torch.no_grad()
def test_bare_dynamic_and_static_caches_decode_as_the_default_one(strategy, depth):
    model, ids = full_model("llama"), prompt_ids(14)
    expected = truth_of(readable_logits, model, ids, PLANS[strategy])
    with optimized(model, PLANS[strategy], depth):
        bare, static = DynamicCache(), StaticCache(config=model.config, max_cache_len=20)
        for cache in (bare, static):
            pieces = [(0, 6), (6, 9), *((i, i + 1) for i in range(9, 14))]
            logits = [model(ids[:, a:b], past_key_values=cache).logits for a, b in pieces]
            assert_within(torch.cat(logits, 1), expected)
    assert any(isinstance(layer, SplitKVCache) for layer in bare.layers)
    assert not any(isinstance(layer, SplitKVCache) for layer in static.layers)


@pytest.mark.parametrize("strategy", ["first_value_mean", "sink_window"])
@torch.no_grad()
def test_batches_of_a_reduced_cache_are_picked_and_repeated(strategy, refuses):
    model = full_model("llama")
    ids = torch.cat([prompt_ids(9, seed=s) for s in range(3)])

    def one_by_one(model):
        return torch.cat([readable_logits(model, row[None], PLANS[strategy]) for row in ids])

    expected = truth_of(one_by_one, model)[:, 8:]
    with optimized(model, PLANS[strategy]):
        cache = model(ids[:, :8]).past_key_values
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        step = model(ids[[2, 2, 0, 0], 8:], past_key_values=cache).logits
        with refuses("cannot be shortened"):
            cache.crop(-1)
        cache.reset()
        assert cache.get_seq_length() == 0
        assert_within(model(ids, past_key_values=cache).logits[:, 8:], expected)
    assert_within(step, expected[[2, 2, 0, 0]])


def test_a_second_block_on_the_same_model_is_refused(refuses):
    model = full_model("llama")
    with optimized(model, PLANS["first_value"]), refuses("already runs under a plan"):
        optimized(model, PLANS["first_value"]).__enter__()
    with optimized(model, PLANS["first_value"]):
        pass


@torch.no_grad()
def test_blocks_on_two_models_do_not_meet():
    one, other, ids = full_model("llama"), full_model("qwen3"), prompt_ids(9)
    with optimized(one, PLANS["first_value"]):
        alone = one(ids).logits
        with optimized(other, PLANS["first_value_mean"]):
            assert torch.equal(one(ids).logits, alone)


def test_a_model_already_hooked_into_is_not_pruned():
    model = full_model("llama")
    model.model.layers[0].self_attn.forward = model.model.layers[0].self_attn.forward
    model.model.layers[1].self_attn.q_proj = torch.nn.Sequential(model.model.layers[1].self_attn.q_proj)
    with optimized(model, PLANS["first_value"]) as run:
        assert sorted(run.pruned) == [2]


def test_an_unknown_depth_is_refused():
    with pytest.raises(StudyError, match="use one of projections, attention"):
        optimized(full_model("llama"), Plan(), "deep").__enter__()
