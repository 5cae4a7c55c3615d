"""What a prompt decided travels with its KV cache, and a cache is continued only where it belongs."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from in_threads import in_threads
from readable import readable_logits
from tiny import ARCHITECTURES, prompt_ids, tiny_model
from transformers import DynamicCache, StaticCache

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.cache import cache_bytes

HEADS = {0: [0, 1, 2, 3], 1: [0, 1], 2: [1, 2, 3]}
DEPTHS = pytest.mark.parametrize("depth", ["projections", "attention"])


@DEPTHS
@torch.no_grad()
def test_a_prompt_beyond_max_tokens_stays_unmodified_after_a_shorter_one(depth):
    model, long, short = tiny_model("llama"), prompt_ids(67), prompt_ids(9, seed=1)
    expected = model(long).logits[:, 60:]
    with optimized(model, Plan(heads=HEADS, max_tokens=20), depth):
        cache = model(long[:, :60]).past_key_values
        assert not torch.allclose(model(short).logits, readable_logits_of_none(model, short), atol=1e-3)
        decoded = torch.cat([model(long[:, i : i + 1], past_key_values=cache).logits for i in range(60, 67)], 1)
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def readable_logits_of_none(model, ids):
    other = tiny_model("llama")  # the same weights, under no plan
    return other(ids).logits


@pytest.mark.parametrize(
    "plan",
    [
        Plan(heads=HEADS, strategy="first_value_mean"),
        Plan(first_layer_threshold=0.15),
        Plan(first_layer_threshold=0.15, strategy="reuse"),
        Plan(heads=HEADS, strategy="sink_window", window=4),
    ],
)
@torch.no_grad()
def test_two_prompts_in_turn_decode_as_each_alone(plan):
    model, prompts = tiny_model("llama"), [prompt_ids(20), prompt_ids(14, seed=3)]
    with optimized(model, plan):
        alone = [steps(model, ids, model(ids[:, :9]).past_key_values) for ids in prompts]
        caches = [model(ids[:, :9]).past_key_values for ids in prompts]
        in_turn = [steps(model, ids, cache) for ids, cache in zip(prompts, caches, strict=True)]
    for one, other in zip(in_turn, alone, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_heads_that_the_prompt_decides_keep_as_little_as_heads_by_hand():
    model, ids = tiny_model("llama"), prompt_ids(20)
    settings = {"strategy": "sink_window", "sink_tokens": 2, "window": 4}
    with optimized(model, Plan(first_layer_threshold=0.15, **settings)) as run:
        decided = model(ids[:, :9]).past_key_values
        heads = {layer: run.replaced_heads(layer) for layer in range(1, model.config.num_hidden_layers)}
        found = steps(model, ids, decided)
    with optimized(model, Plan(heads=heads, **settings)):
        by_hand = model(ids[:, :9]).past_key_values
        expected = steps(model, ids, by_hand)
    assert torch.equal(found, expected)
    assert all(heads.values())
    unmodified = model(ids[:, :19]).past_key_values
    assert cache_bytes(decided) == cache_bytes(by_hand) < cache_bytes(unmodified)


def steps(model, ids, cache):
    return torch.cat([model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(9, ids.shape[1])], 1)


@torch.no_grad()
def test_a_copied_cache_keeps_what_its_prompt_decided():
    model, ids = tiny_model("llama"), prompt_ids(20)
    with optimized(model, Plan(first_layer_threshold=0.15)):
        cache = model(ids[:, :9]).past_key_values
        copied = copy.deepcopy(cache)
        model(prompt_ids(5, seed=1))
        assert torch.equal(steps(model, ids, copied), steps(model, ids, cache))


CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=20),
}


@DEPTHS
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("strategy", ["first_value", "first_value_mean", "sink_window", "reuse"])
@torch.no_grad()
def test_a_cache_is_continued_under_its_own_plan_alone(strategy, kind, depth, refuses):
    model, ids = tiny_model("llama"), prompt_ids(12)
    plan = Plan(heads=HEADS, strategy=strategy)

    def fill(begin=0, past_key_values=None):
        past_key_values = CACHES[kind](model.config) if past_key_values is None else past_key_values
        return model(ids[:, begin:9], past_key_values=past_key_values).past_key_values

    before = fill()
    with optimized(model, plan, depth):
        expected = model(ids[:, 9:], past_key_values=fill()).logits
        cache = fill()
        continued = fill(8, before)  # filled unmodified, all but its last tokens
    for one in (cache, continued):
        with refuses("filled under a plan"):
            model(ids[:, 9:], past_key_values=one)
        with optimized(model, Plan(heads={1: [0]}, strategy=strategy), depth), refuses("filled under another plan"):
            model(ids[:, 9:], past_key_values=one)
    other = {"projections": "attention", "attention": "projections"}[depth]
    with optimized(model, plan, other), refuses("filled under another plan", depth):
        model(ids[:, 9:], past_key_values=cache)
    cache = pickle.loads(pickle.dumps(cache))
    with optimized(model, plan, depth):  # what was refused has left it as it was
        torch.testing.assert_close(model(ids[:, 9:], past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-5)


@DEPTHS
@torch.no_grad()
def test_an_emptied_cache_is_anybodys(depth):
    model, ids = tiny_model("llama"), prompt_ids(12)
    plain, plan = model(ids).logits, Plan(heads=HEADS, max_tokens=10)
    with optimized(model, plan, depth):
        expected = model(ids[:, 9:], past_key_values=model(ids[:, :9]).past_key_values).logits
        cache = model(ids[:, :9]).past_key_values
        cache.reset()
        torch.testing.assert_close(model(ids, past_key_values=cache).logits, plain)
        cache.reset()
        model(ids[:, :9], past_key_values=cache)
    cache.reset()
    model(ids[:, :9], past_key_values=cache)
    with optimized(model, replace(plan, heads={2: [3]}), depth):  # filled unmodified: the first token under the plan
        model(ids[:, 9:10], past_key_values=copy.deepcopy(cache))
    torch.testing.assert_close(model(ids[:, 9:], past_key_values=cache).logits, plain[:, 9:], atol=1e-5, rtol=1e-5)
    cache.reset()
    with optimized(model, plan, depth):
        model(ids[:, :9], past_key_values=cache)
        torch.testing.assert_close(model(ids[:, 9:], past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-5)


@DEPTHS
@torch.no_grad()
def test_a_prompt_in_an_emptied_cache_stays_unmodified_however_long_it_gets(depth):
    model, long, short = tiny_model("llama"), prompt_ids(15), prompt_ids(14, seed=1)
    expected = model(short).logits[:, 9:]
    with optimized(model, Plan(heads=HEADS, min_tokens=12), depth):
        cache = StaticCache(config=model.config, max_cache_len=20)
        model(long, past_key_values=cache)
        cache.reset()
        model(short[:, :9], past_key_values=cache)
        decoded = torch.cat([model(short[:, i : i + 1], past_key_values=cache).logits for i in range(9, 14)], 1)
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_emptied_after_an_error_is_anybodys():
    model, ids = tiny_model("llama"), prompt_ids(12)
    expected, plan = model(ids).logits, Plan(heads=HEADS, strategy="sink_window", window=4)
    with optimized(model, plan):
        cache = model(ids[:, :9]).past_key_values
        failing = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids[:, 9:10], past_key_values=cache)
        failing.remove()
    cache.reset()
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_that_holds_every_token_is_cropped():
    model, ids, plan = tiny_model("llama"), prompt_ids(12), Plan(heads=HEADS)
    with optimized(model, plan, "attention"):
        cache = model(ids).past_key_values
        cache.crop(-3)
        step = model(ids[:, 9:], past_key_values=cache).logits
    torch.testing.assert_close(step, readable_logits(model, ids, plan)[:, 9:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_measured_weight_follows_its_prompt_when_a_batch_is_picked():
    model, plan = tiny_model("llama"), Plan(heads=HEADS, strategy="first_value_mean")
    ids = torch.cat([prompt_ids(12, seed=seed) for seed in range(3)])
    with optimized(model, plan):
        cache = model(ids[:, :9]).past_key_values
        expected = model(ids[:, 9:], past_key_values=copy.deepcopy(cache)).logits
        cache.batch_select_indices(torch.tensor([2, 0]))
        picked = model(ids[[2, 0], 9:], past_key_values=cache).logits
    torch.testing.assert_close(picked, expected[[2, 0]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES if name not in ("gemma2", "gpt_oss")])
@torch.no_grad()
def test_every_architecture_shows_its_cache(model_type):
    model, long, short = tiny_model(model_type), prompt_ids(12), prompt_ids(4, seed=1)
    expected = model(long).logits[:, 9:]
    with optimized(model, Plan(heads={1: [0, 1], 2: [3]}, max_tokens=5)):
        cache = model(long[:, :9]).past_key_values
        model(short)
        torch.testing.assert_close(model(long[:, 9:], past_key_values=cache).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["first_value", "sink_window"])
@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES if name not in ("gemma2", "gpt_oss")])
@torch.no_grad()
def test_every_architecture_continues_a_prompt_in_pieces_as_it_prefills_it(model_type, strategy):
    # A layer whose sliding window is shorter than the prompt runs without the plan.
    windows = {"sliding_window": 64} if "sliding_window" in ARCHITECTURES[model_type] else {}
    model, ids = tiny_model(model_type, **windows), prompt_ids(14)
    plan = Plan(heads={1: [0, 1], 2: [3]}, strategy=strategy, sink_tokens=2, window=4)
    unchanged = model(ids).logits
    with optimized(model, plan):
        model(prompt_ids(9, seed=1))
        whole = model(ids).logits
        done = model(ids[:, :6])
        pieces = [done.logits]
        for piece in ids[:, 6:].split([4, 1, 1, 2], 1):
            pieces.append(model(piece, past_key_values=done.past_key_values).logits)
        model.generate(ids, max_new_tokens=2, do_sample=False)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, unchanged, atol=1e-3)


@DEPTHS
@torch.no_grad()
def test_threads_in_one_block_run_prompts_of_their_own(depth):
    model, plan = tiny_model("llama"), Plan(heads=HEADS, strategy="first_value_mean", max_tokens=30)
    prompts = [prompt_ids(n, seed=n) for n in (12, 25, 40, 31)]

    @torch.no_grad()
    def run(i):
        return steps(model, prompts[i], model(prompts[i][:, :9]).past_key_values)

    with optimized(model, plan, depth):
        expected = [run(i) for i in range(4)]
        found = in_threads(4, 10, run)
    for results, one in zip(found, expected, strict=True):
        assert all(torch.equal(result, one) for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["first_value", "reuse"])
@DEPTHS
@torch.no_grad()
def test_a_compiled_model_runs_under_the_plan(strategy, depth):
    model, short, long = tiny_model("llama"), prompt_ids(9), prompt_ids(12, seed=1)
    torch.compiler.reset()
    before_the_block = torch.compile(model, backend="eager")
    plain = before_the_block(short).logits
    with optimized(model, Plan(heads=HEADS, strategy=strategy, max_tokens=10), depth):
        for compiled in (before_the_block, torch.compile(model, backend="eager")):
            for ids in (short, long, short):
                torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
        assert not torch.allclose(before_the_block(short).logits, plain, atol=1e-3)
    torch.testing.assert_close(before_the_block(short).logits, plain)


@DEPTHS
@torch.no_grad()
def test_a_layer_that_runs_without_its_hooks_is_refused(depth, refuses):
    model = tiny_model("llama")
    hidden, positions = torch.randn(1, 5, 32), torch.arange(5)[None]
    with optimized(model, Plan(heads=HEADS), depth), refuses("runs without the hooks"):
        angles = model.model.rotary_emb(hidden, positions)
        model.model.layers[1].self_attn.forward(hidden, position_embeddings=angles, attention_mask=None)


@DEPTHS
@torch.no_grad()
def test_a_cache_that_was_split_emptied_and_filled_elsewhere_is_whole(depth):
    model, ids, plan = tiny_model("llama"), prompt_ids(12), Plan(heads=HEADS, strategy="sink_window", window=4)
    with optimized(model, plan, depth):
        used = model(ids[:, :9]).past_key_values
    used.reset()
    model(ids[:, :9], past_key_values=used)
    unused = model(ids[:, :9]).past_key_values
    with optimized(model, plan, depth):
        logits = [model(ids[:, 9:], past_key_values=cache).logits for cache in (used, unused)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
