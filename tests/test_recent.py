"""The cache of first and latest tokens against a list of tokens."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.recent import RecentTokens


def tokens(numbers, scale=1.0):
    """Two sequences of one KV head, each token a vector of its number."""
    return scale * torch.tensor(numbers, dtype=torch.float32).view(1, 1, -1, 1).expand(2, 1, -1, 3)


def numbers(states):
    return states[1, 0, :, 2].tolist()


@given(st.integers(1, 3), st.integers(0, 5), st.lists(st.integers(1, 4), min_size=1, max_size=30))
@settings(max_examples=150, deadline=None)
@torch.no_grad()
def test_the_first_tokens_and_the_latest_stay(first, recent, pieces):
    cache, kept, made = RecentTokens(), [], 0
    for piece in pieces:
        added = list(range(made, made + piece))
        cache.append(tokens(added), tokens(added, 10.0))
        made, kept = made + piece, kept + added
        key, value = cache.ordered
        assert numbers(key) == kept
        assert numbers(value) == [10 * number for number in kept]
        assert sorted(numbers(cache.held[0])) == kept
        cache.forget(first, recent)
        if len(kept) > first + recent:
            kept = kept[:first] + kept[len(kept) - recent :]
        assert numbers(cache.ordered[0]) == kept
        cache.change(lambda states: states[[1, 0]])


def ring():
    """Tokens 0, 1, 7, 8 and 9, and the place of one that was forgotten."""
    cache = RecentTokens()
    for added in (range(9), [9]):
        cache.append(tokens(added), tokens(added))
        cache.forget(2, 3)
    return cache


@torch.no_grad()
def test_a_token_takes_the_place_of_the_oldest():
    cache = ring()
    where = cache.held[0].data_ptr()
    for number in range(10, 17):
        cache.append(tokens([number]), tokens([number]))
        assert cache.held[0].data_ptr() == where
        cache.forget(2, 3)


@torch.no_grad()
def test_a_token_that_does_not_fit_is_not_made_to():
    cache = ring()
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        cache.append(tokens([10])[:1], tokens([10])[:1])
    precise = tokens([10]).double() + 1e-12
    cache.append(precise, precise)
    assert torch.equal(cache.ordered[0][:, :, -1:], precise)


@pytest.mark.parametrize("modes", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
def test_decoding_goes_on_in_another_mode_and_from_a_copy(modes):
    """In place or not, no token is lost, and a copy of the cache does not see what is added to it."""
    model, ids = tiny_model("llama", num_attention_heads=8, num_key_value_heads=2), prompt_ids(60)
    plan = Plan(heads={0: range(8), 1: [0, 1, 5]}, strategy="sink_window", sink_tokens=2, window=5)

    def decoded(cache, start, stop):
        return [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(start, stop)]

    with optimized(model, plan):
        with torch.no_grad():
            cache = model(ids[:, :20], use_cache=True).past_key_values
            expected = decoded(cache, 20, 60)
        with modes[0]():
            cache = model(ids[:, :20], use_cache=True).past_key_values
            found = decoded(cache, 20, 40)
            before = copy.deepcopy(cache)
        with modes[1]():
            found += decoded(cache, 40, 60)
            again = decoded(before, 40, 60)
    assert torch.equal(torch.cat(found), torch.cat(expected))
    assert torch.equal(torch.cat(again), torch.cat(expected[20:]))


def test_gradients_reach_a_cache_that_decoding_would_write_to():
    """Each token's gradient, through a ring that has gone round, is that of the same tokens in one call."""
    model, ids = tiny_model("llama", num_attention_heads=8, num_key_value_heads=2).double(), prompt_ids(30)
    plan = Plan(heads={0: range(8), 1: range(4)}, strategy="sink_window", sink_tokens=2, window=5)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()

    def slopes(*pieces):
        cache, total = None, 0
        with optimized(model, plan):
            for piece in pieces:
                found = model(inputs_embeds=embedded[:, piece], past_key_values=cache, use_cache=True)
                cache, total = found.past_key_values, total + found.logits.square().sum()
        return torch.autograd.grad(total, embedded)[0]

    steps = slopes(slice(0, 10), *(slice(i, i + 1) for i in range(10, 30)))
    torch.testing.assert_close(steps, slopes(slice(0, 30)), rtol=1e-5, atol=1e-9)
