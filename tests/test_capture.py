"""Captures against eager attention, which they never use."""

import math
from dataclasses import replace

import pytest
import torch
from arithmetic import Truth, allowed_error, assert_within, in_float64, largest_error, roundings, truth_of
from readable import readable_norms
from tiny import ALL, SELF_ATTENDING, eager_maps, key_classes, prompt_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from sinkstudy.capture import sink_mass, watch_forward, watched
from sinkstudy.capture.eager import watch_eagerly
from sinkstudy.capture.masses import AttentionCall, Watch, blockwise, can_fuse, explicit, from_map, fused
from sinkstudy.errors import StudyError


def true_maps(model, ids):
    """Maps (layer, batch, head, query, key) in float64; eager attention's own error is the yardstick."""
    return truth_of(eager_maps, model, ids)


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("n", [1, 2, 40, 800])
def test_sink_mass_equals_eager_attention(model_type, n):
    model, ids = tiny_model(model_type), prompt_ids(n)
    mass = sink_mass(model, ids)
    assert mass.dtype == torch.float32
    assert_within(mass, true_maps(model, ids)[:, 0, :, :, 0])


def captured(model, ids, maps=False):
    """All masses of one forward pass, by layer."""
    layers = {}
    watch_forward(model, ids, lambda layer, masses: layers.update({layer: masses}), maps=maps)
    return layers


@pytest.mark.parametrize("model_type", ALL)
def test_passes_after_the_first_see_the_same_and_leave_out_what_follows_the_last_attention(model_type):
    model, passes, calls = tiny_model(model_type), [prompt_ids(9), prompt_ids(23)], []
    handles = [module.register_forward_hook(lambda *_: calls.append(1)) for module in model.modules()]
    try:
        with watched(model) as forward:
            for ids in passes:
                layers = {}
                forward(ids, lambda layer, masses, kept=layers: kept.update({layer: masses.keys}))
                calls.append(0)
    finally:
        for handle in handles:
            handle.remove()
    expected = captured(model, passes[1])
    assert layers.keys() == expected.keys()
    assert all(torch.equal(layers[layer], expected[layer].keys) for layer in layers)
    first = calls.index(0)
    assert sum(calls[first:]) < sum(calls[:first])


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_oss", "deepseek_v3"])
def test_every_key_class_and_the_map_equal_eager_attention(model_type):
    model, ids = tiny_model(model_type), prompt_ids(23)
    expected = true_maps(model, ids)
    for maps in (False, True):
        layers = captured(model, ids, maps)
        found = torch.stack([layers[layer].keys for layer in sorted(layers)])
        assert_within(found, expected.map(key_classes))
    assert_within(torch.stack([layers[layer].map for layer in sorted(layers)]), expected)


def test_rows_of_a_model_with_learned_sinks_sum_to_less_than_one():
    model, ids = tiny_model("gpt_oss"), prompt_ids(23)
    expected = truth_of(lambda model: eager_maps(model, ids).sum(-1), model)
    layers = captured(model, ids)
    found = torch.stack([layers[layer].row_sum for layer in sorted(layers)])
    assert_within(found, expected)
    assert found.min() < 0.99


def test_true_layer_indices_of_a_hybrid():
    assert sorted(captured(tiny_model("lfm2"), prompt_ids(9))) == [1, 2]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt_oss", "lfm2", "opt"])
def test_a_padded_batch_equals_one_prompt_at_a_time(model_type):
    model = tiny_model(model_type)
    prompts = [prompt_ids(n, seed=n)[0] for n in (3, 17, 1, 30)]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    together = captured(model, padded)
    expected = [true_maps(model, ids[None])[:, 0, :, :, 0] for ids in prompts]
    allowed = max(truth.allowed for truth in expected)  # a short prompt's own has too few numbers to tell
    for row, (ids, truth) in enumerate(zip(prompts, expected, strict=True)):
        batched = torch.stack([together[layer].keys[row, :, : len(ids), 0] for layer in sorted(together)])
        for found in (batched, sink_mass(model, ids)):
            assert_within(found, replace(truth, allowed=allowed))


def plain_attention(query, key, value, scale):
    """Output (batch, head, query, width) and weights (batch, head, query, key), in the dtype of what is given."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    future = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).triu(1)
    weights = (query @ key.transpose(-1, -2) * scale).masked_fill(future, -torch.inf).softmax(-1)
    return weights @ value, weights


def score_rounding(query, key, scale):
    """How far a score may be off, of as many products as a key has numbers: that much of itself is its weight off."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return roundings(key.shape[-1]) * scale * (query.abs() @ key.abs().transpose(-1, -2)).amax().item()


def true_attention(query, key, value, scale, terms):
    """Output and weights as truths, where a weight may round `terms` times and an output once more for every key."""
    plain = plain_attention(query, key, value, scale)
    exact = plain_attention(query.double(), key.double(), value.double(), scale)
    counts = terms + key.shape[-2], terms
    return [Truth(e, allowed_error(p, e, count)) for p, e, count in zip(plain, exact, counts, strict=True)]


def row_rounding(query, key, scale):
    """How far a row's weights may miss a sum of 1: by its scores, computed twice, and by the sum itself."""
    return 2 * score_rounding(query, key, scale) + roundings(key.shape[-2])


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (8, 1)])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 130])
def test_the_three_methods_compute_attention(heads, n):
    generator = torch.Generator().manual_seed(n)
    query = torch.randn(2, heads[0], n, 16, generator=generator)
    key, value = (torch.randn(2, heads[1], n, 16, generator=generator) for _ in range(2))
    counted = torch.arange(n) < torch.tensor([n, n - 1])[:, None]
    call = AttentionCall(query, key, value, scale=0.3, counted=counted)
    assert can_fuse(call)
    # So few numbers may all be near the truth by luck: what their scores may round is added.
    terms = score_rounding(query, key, 0.3) / roundings(1)
    expected, maps = true_attention(query, key, value, 0.3, terms)
    for method in (explicit, fused, lambda c: blockwise(c, block=7)):
        output, masses = method(call)
        assert_within(output, expected)
        assert_within(masses.keys, maps.map(key_classes))
        assert masses.row_error.amax() <= row_rounding(query, key, 0.3)
        received = maps.map(lambda maps: mean_of_later(maps[None], counted)[0])
        assert_within(later_mean(masses.received, counted), replace(received, allowed=maps.allowed + roundings(n)))


@pytest.mark.parametrize("n", [1, 2, 5, 15, 16])
def test_many_short_prompts_at_once_agree_with_each_by_itself(n):
    """Where there are many rows of few keys, the softmax is taken key by key."""
    torch.manual_seed(0)
    query, key, value = 3 * torch.randn(3, 3000, 2, n, 8)
    together, masses = explicit(AttentionCall(query, key, value, 0.5))
    expected, maps = true_attention(query, key, value, 0.5, terms=key.shape[-1])
    assert_within(masses.map, maps)
    assert_within(together, expected)
    for row in (0, 1500, 2999):
        output, alone = explicit(AttentionCall(query[row, None], key[row, None], value[row, None], 0.5))
        assert_within(alone.map, maps[row, None])
        assert_within(output, expected[row, None])


def test_the_row_check_sees_a_log_sum_exp_that_is_wrong(monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 50, 8), torch.randn(2, 2, 50, 8), torch.randn(2, 2, 50, 8)
    rounding = row_rounding(query, key, 0.3)
    assert (fused(AttentionCall(query, key, value, 0.3))[1].row_error <= rounding).all()
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def wrong(*arguments, **options):
        output, lse = kernel(*arguments, **options)
        return output, lse.index_put(tuple(map(torch.tensor, (1, 5, 49))), lse[1, 5, 49] + 0.2)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", wrong)
    error = fused(AttentionCall(query, key, value, 0.3))[1].row_error
    assert error[0] <= rounding
    assert error[1] == pytest.approx(1 - math.exp(-0.2), abs=rounding)


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 40), (torch.bfloat16, 800), (torch.float16, 40)])
def test_scores_in_half_precision_are_close_to_eager_attention_in_it(model_type, dtype, n):
    model, ids = tiny_model(model_type).to(dtype), prompt_ids(n)

    def scores(model):
        return eager_maps(model, ids)[:, 0, :, :, 0].to(torch.promote_types(model.dtype, torch.float32)).mean(-1)

    mass = sink_mass(model, ids)
    assert mass.dtype == torch.float32
    with in_float64(model) as exact:
        expected = scores(exact)
    # Eager attention rounds its weights to the model's dtype once.
    allowed = 2 * largest_error(scores(model), expected) + roundings(1, dtype) * expected.max().item()
    assert_within(mass.mean(-1), Truth(expected, allowed))


@pytest.mark.parametrize("n", [50, 800])
def test_the_forward_pass_gives_what_it_gives_unwatched(n):
    model, ids = tiny_model("llama", max_position_embeddings=1024), prompt_ids(n)

    def hidden(model):
        model.set_attn_implementation("eager")
        return model.base_model(ids).last_hidden_state

    expected = truth_of(hidden, tiny_model("llama", max_position_embeddings=1024))
    outputs = []
    handle = model.base_model.register_forward_hook(lambda module, args, out: outputs.append(out.last_hidden_state))
    sink_mass(model, ids)
    handle.remove()
    assert_within(outputs[0], expected)


def test_the_model_is_left_as_it_was():
    model, ids = tiny_model("llama"), prompt_ids(12)
    before = model(ids).logits
    sink_mass(model, ids)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("model_type", SELF_ATTENDING)
def test_self_attending_models_give_up_their_maps_a_layer_at_a_time(model_type):
    model, ids = tiny_model(model_type), prompt_ids(12)
    layers = captured(model, ids, maps=True)
    assert_within(torch.stack([layers[i].map for i in range(3)]), true_maps(model, ids))
    with watch_eagerly(model, Watch(lambda layer, masses: None), tokens=12):
        assert set(model.base_model(ids, output_attentions=True).attentions) == {None}


def test_a_model_without_attention_is_refused_in_one_sentence():
    config = AutoConfig.for_model("mamba", vocab_size=99, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(StudyError, match="model type 'mamba' cannot be captured"):
        sink_mass(model, prompt_ids(5))


def test_an_encoder_is_refused_and_the_same_as_a_decoder_is_captured():
    encoder = tiny_model("bert")
    with pytest.raises(StudyError, match="attends to later tokens"):
        sink_mass(encoder, prompt_ids(5))
    decoder = tiny_model("bert", is_decoder=True)
    assert_within(sink_mass(decoder, prompt_ids(5)), true_maps(decoder, prompt_ids(5))[:, 0, :, :, 0])


@pytest.mark.parametrize("model_type", ["deepseek_v4", "cpmant"])
def test_attention_to_other_keys_than_the_prompts_is_refused(model_type):
    """One compresses its keys, the other puts tokens of its own before the prompt's."""
    model = tiny_model(model_type, num_hidden_layers=4)
    with pytest.raises(StudyError, match="attends to other keys than the prompt's"):
        sink_mass(model, prompt_ids(40))


def test_weights_that_look_ahead_are_an_error_of_the_row():
    attention = torch.full((1, 2, 6, 6), 1 / 6)
    assert from_map(attention, keep_map=False).row_error.amin() > 0.5
    call = AttentionCall(*torch.randn(3, 1, 2, 6, 8), scale=1.0, mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
    assert blockwise(call)[1].row_error.amin() > 0.1


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox", "phi", "deepseek_v3", "gpt_oss", "lfm2"])
def test_output_norms_equal_each_heads_own_contribution(model_type):
    model, ids = tiny_model(model_type), prompt_ids(11)
    found = {}
    watch_forward(model, ids, lambda layer, masses: found.update({layer: masses.norms.output}), norms=True)
    expected = truth_of(readable_norms, model, ids)
    assert_within(torch.stack([found[layer] for layer in sorted(found)]), expected)


@torch.no_grad()
def entering_residuals(model, ids):
    """Norms of the residual streams that enter the layers that attend, (layer, batch, query)."""
    return entering(model, ids).norm(dim=-1)


@torch.no_grad()
def entering(model, ids):
    return torch.stack(model.base_model(ids, output_hidden_states=True).hidden_states[:-1])


@pytest.mark.parametrize("model_type", ALL)
def test_residual_norms_equal_those_of_the_hidden_states(model_type):
    model, ids, found = tiny_model(model_type), prompt_ids(11), {}
    watch_forward(model, ids, lambda layer, masses: found.update({layer: masses.norms}), norms=True)
    layers = sorted(found)
    expected = truth_of(lambda model: entering_residuals(model, ids)[layers], model)
    assert_within(torch.stack([found[layer].residual for layer in layers]), expected)
    first = entering(model, ids)[layers, 0, 0]
    for row, layer in enumerate(layers):
        assert found[layer].channel[0].tolist() == first[row].abs().argsort(descending=True)[:3].tolist()
        assert torch.allclose(found[layer].channel_value[0], first[row][found[layer].channel[0]], rtol=1e-5)


def test_of_several_residual_streams_side_by_side_no_norm_is_told():
    streams = {"vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    layers = {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 0,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"],
    }
    model, ids, found = tiny_model("gemma3n_text", head_dim=8, **streams, **layers), prompt_ids(11), {}
    watch_forward(model, ids, lambda layer, masses: found.update({layer: masses}), norms=True)
    assert {masses.norms for masses in found.values()} == {None}
    mass = torch.stack([found[layer].keys[0, ..., 0] for layer in sorted(found)])
    assert_within(mass, true_maps(model, ids)[:, 0, :, :, 0])


def mean_of_later(maps, counted):
    """Mean over the counted queries after a key of their attention to it, (layer, batch, head, key), 0 without any."""
    means = torch.zeros(maps.shape[:-2] + maps.shape[-1:], dtype=maps.dtype)
    for row, queries in enumerate(counted.sum(-1).tolist()):
        for key in range(queries - 1):
            means[:, row, :, key] = maps[:, row, :, key + 1 : queries, key].mean(-1)
    return means


def later_mean(received, counted):
    """The same from the sums of `Masses.received`."""
    later = counted.sum(-1, keepdim=True) - 1 - torch.arange(counted.shape[1])
    return received / later.clamp(min=1)[:, None]


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("maps", [False, True])
def test_attention_received_equals_that_of_eager_attention_without_padding(model_type, maps):
    model, layers = tiny_model(model_type), {}
    ids = torch.nn.utils.rnn.pad_sequence([prompt_ids(n, seed=n)[0] for n in (3, 40, 1)], batch_first=True)
    counted = torch.arange(ids.shape[1]) < torch.tensor([3, 40, 1])[:, None]
    keep = lambda layer, masses: layers.update({layer: masses.received})  # noqa: E731
    watch_forward(model, ids, keep, maps=maps, counted=counted)
    expected = true_maps(model, ids).map(lambda maps: mean_of_later(maps, counted))
    received = torch.stack([layers[layer] for layer in sorted(layers)])
    assert_within(later_mean(received, counted), replace(expected, allowed=expected.allowed + roundings(40)))


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that anything computes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        output = function(*arguments, **named or {})
        tensors = [part for part in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(part)]
        self.numbers = max([self.numbers, *(part.numel() for part in tensors)])
        return output


@pytest.mark.parametrize("method", [fused, blockwise])
def test_memory_for_positions_is_linear_in_the_length(method):
    largest = {}
    for n in (1024, 8192):
        query, key, value = torch.randn(1, 2, n, 4), *torch.randn(2, 1, 1, n, 4)
        with Largest() as seen:
            method(AttentionCall(query, key, value, 0.5, counted=torch.ones(1, n, dtype=torch.bool)))
        largest[n] = seen.numbers
    assert largest[8192] <= 8 * largest[1024]


def test_a_lost_sliding_window_mask_is_refused(monkeypatch):
    monkeypatch.setattr("sinkstudy.capture.interface.sdpa_mask", lambda *args, **kwargs: None)
    with pytest.raises(StudyError, match="sliding window of 7"):
        sink_mass(tiny_model("mistral"), prompt_ids(20))


def test_a_batch_is_refused_by_sink_mass():
    with pytest.raises(StudyError, match="one prompt"):
        sink_mass(tiny_model("llama"), torch.zeros(2, 5, dtype=torch.long))
