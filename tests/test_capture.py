"""Captures against eager attention, which they never use."""

import pytest
import torch
from tiny import ALL, SELF_ATTENDING, eager_maps, prompt_ids, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from sinkstudy.capture import masses as masses_module
from sinkstudy.capture import sink_mass, watch_forward, watched
from sinkstudy.capture.eager import watch_eagerly
from sinkstudy.capture.masses import AttentionCall, blockwise, can_fuse, explicit, from_map, fused
from sinkstudy.errors import StudyError


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize("n", [1, 2, 40, 800])
def test_sink_mass_equals_eager_attention(model_type, n):
    model, ids = tiny_model(model_type), prompt_ids(n)
    expected = eager_maps(model, ids)[:, 0, :, :, 0]
    mass = sink_mass(model, ids)
    assert mass.dtype == torch.float32
    assert mass.shape == expected.shape
    torch.testing.assert_close(mass, expected, atol=1e-6, rtol=0)


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
    expected = eager_maps(model, ids)  # (layer, batch, head, query, key)
    columns = [expected[..., j] for j in range(4)]
    own = expected.diagonal(dim1=-2, dim2=-1)
    before = torch.cat([torch.zeros_like(own[..., :1]), expected.diagonal(-1, dim1=-2, dim2=-1)], -1)
    keys = torch.stack([*columns, own, before], -1)
    for maps in (False, True):
        layers = captured(model, ids, maps)
        found = torch.stack([layers[layer].keys for layer in sorted(layers)])
        torch.testing.assert_close(found, keys, atol=1e-6, rtol=0)
    attention = torch.stack([layers[layer].map for layer in sorted(layers)])
    torch.testing.assert_close(attention, expected, atol=1e-6, rtol=0)


def test_rows_of_a_model_with_learned_sinks_sum_to_less_than_one():
    model, ids = tiny_model("gpt_oss"), prompt_ids(23)
    expected = eager_maps(model, ids).sum(-1)
    layers = captured(model, ids)
    found = torch.stack([layers[layer].row_sum for layer in sorted(layers)])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert all(masses.learned_sinks for masses in layers.values())
    assert found.min() < 0.99


def test_true_layer_indices_of_a_hybrid():
    assert sorted(captured(tiny_model("lfm2"), prompt_ids(9))) == [1, 2]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt_oss", "lfm2", "opt"])
def test_a_padded_batch_equals_one_prompt_at_a_time(model_type):
    model = tiny_model(model_type)
    prompts = [prompt_ids(n, seed=n)[0] for n in (3, 17, 1, 30)]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    together = captured(model, padded)
    for row, ids in enumerate(prompts):
        alone = sink_mass(model, ids)
        batched = torch.stack([together[layer].keys[row, :, : len(ids), 0] for layer in sorted(together)])
        torch.testing.assert_close(batched, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (8, 1)])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 130])
def test_the_three_methods_agree(heads, n):
    generator = torch.Generator().manual_seed(n)
    query = torch.randn(2, heads[0], n, 16, generator=generator)
    key, value = (torch.randn(2, heads[1], n, 16, generator=generator) for _ in range(2))
    call = AttentionCall(query, key, value, scale=0.3)
    assert can_fuse(call)
    readable_output, readable = explicit(call)
    for method in (fused, lambda c: blockwise(c, block=7)):
        output, masses = method(call)
        torch.testing.assert_close(output, readable_output, atol=2e-6, rtol=0)
        torch.testing.assert_close(masses.keys, readable.keys, atol=1e-6, rtol=0)
        assert masses.row_error.amax() < 1e-5


@pytest.mark.parametrize("n", [1, 2, 5, 15, 16])
def test_many_short_prompts_at_once_agree_with_each_by_itself(n):
    """Where there are many rows of few keys, the softmax is taken key by key."""
    torch.manual_seed(0)
    query, key, value = 3 * torch.randn(3, 3000, 2, n, 8)
    together, masses = explicit(AttentionCall(query, key, value, 0.5))
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    scores = (query.double() @ key.double().transpose(-1, -2) * 0.5).masked_fill(future, -torch.inf)
    torch.testing.assert_close(masses.map, scores.softmax(-1).float(), rtol=0, atol=5e-6)
    for row in (0, 1500, 2999):
        output, alone = explicit(AttentionCall(query[row, None], key[row, None], value[row, None], 0.5))
        torch.testing.assert_close(masses.map[row, None], alone.map, rtol=0, atol=1e-7)
        torch.testing.assert_close(together[row, None], output, rtol=1e-5, atol=1e-6)


def test_the_row_check_sees_a_log_sum_exp_that_is_wrong():
    query, key = torch.randn(2, 2, 3, 50, 8), torch.randn(2, 2, 1, 50, 8)
    future = torch.ones(50, 50, dtype=torch.bool).triu(1)
    lse = (query @ key.transpose(-1, -2) * 0.3).masked_fill(future, -torch.inf).logsumexp(-1)
    assert (masses_module._sampled_row_error(query, key, lse, 0.3) < 1e-5).all()
    lse[1, 1, 2, -1] += 0.2  # one row of the second prompt
    error = masses_module._sampled_row_error(query, key, lse, 0.3)
    assert error[0] < 1e-5
    assert error[1] > 0.1


@pytest.mark.parametrize("model_type", ALL)
@pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 40), (torch.bfloat16, 800), (torch.float16, 40)])
def test_scores_in_half_precision_are_close_to_eager_attention_in_it(model_type, dtype, n):
    model, ids = tiny_model(model_type).to(dtype), prompt_ids(n)
    expected = eager_maps(model, ids)[:, 0, :, :, 0].mean(-1)
    mass = sink_mass(model, ids)
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass.mean(-1), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("n", "implementation"), [(50, "eager"), (800, "sdpa")])
def test_the_forward_pass_is_bit_for_bit_that_of(n, implementation):
    model, ids = tiny_model("llama", max_position_embeddings=1024), prompt_ids(n)
    model.set_attn_implementation(implementation)
    expected = model.base_model(ids).last_hidden_state
    outputs = []
    handle = model.base_model.register_forward_hook(lambda module, args, out: outputs.append(out.last_hidden_state))
    sink_mass(model, ids)
    handle.remove()
    assert torch.equal(outputs[0], expected)


def test_the_model_is_left_as_it_was():
    model, ids = tiny_model("llama"), prompt_ids(12)
    before = model(ids).logits
    sink_mass(model, ids)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("model_type", SELF_ATTENDING)
def test_self_attending_models_give_up_their_maps_a_layer_at_a_time(model_type):
    model, ids = tiny_model(model_type), prompt_ids(12)
    expected = eager_maps(model, ids)
    layers = captured(model, ids, maps=True)
    torch.testing.assert_close(torch.stack([layers[i].map for i in range(3)]), expected, atol=1e-6, rtol=0)
    with watch_eagerly(model, lambda layer, masses: None, maps=False):
        assert set(model.base_model(ids, output_attentions=True).attentions) == {None}


def test_a_model_without_attention_is_refused_in_one_sentence():
    config = AutoConfig.for_model("mamba", vocab_size=99, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(StudyError, match="model type 'mamba' cannot be captured"):
        sink_mass(model, prompt_ids(5))


def test_weights_that_look_ahead_are_an_error_of_the_row():
    attention = torch.full((1, 2, 6, 6), 1 / 6)
    assert from_map(attention, keep_map=False).row_error.amin() > 0.5
    call = AttentionCall(*torch.randn(3, 1, 2, 6, 8), scale=1.0, mask=torch.ones(1, 1, 6, 6, dtype=torch.bool))
    assert blockwise(call)[1].row_error.amin() > 0.1


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox", "phi", "deepseek_v3", "gpt_oss", "lfm2"])
def test_output_norms_equal_each_heads_own_contribution(model_type):
    model, ids = tiny_model(model_type), prompt_ids(11)
    found = {}
    watch_forward(model, ids, lambda layer, masses: found.update({layer: masses.output_norm}), norms=True)
    for layer, norms in found.items():
        heads = norms.shape[1]
        decoder = next(m for m in model.modules() if has_attention(m, layer))
        attention = next(c for c in decoder.children() if getattr(c, "layer_idx", None) == layer)
        projection = [c for c in attention.children() if isinstance(c, torch.nn.Linear | Conv1D)][-1]
        inputs, streams = [], []
        handles = [
            projection.register_forward_pre_hook(lambda _, args, keep=inputs: keep.append(args[0])),
            decoder.register_forward_pre_hook(lambda _, args, keep=streams: keep.append(args[0])),
        ]
        with torch.no_grad():
            model(ids)
            for handle in handles:
                handle.remove()
            bias = projection(torch.zeros_like(inputs[0]))
            for head in range(heads):
                alone = torch.zeros_like(inputs[0])
                width = alone.shape[-1] // heads
                alone[..., head * width : (head + 1) * width] = inputs[0][..., head * width : (head + 1) * width]
                expected = (projection(alone) - bias).norm(dim=-1) / streams[0].norm(dim=-1)
                torch.testing.assert_close(norms[:, head], expected, atol=1e-5, rtol=1e-4)


def has_attention(module, layer):
    children = list(module.children())
    return not isinstance(module, torch.nn.ModuleList) and any(getattr(c, "layer_idx", None) == layer for c in children)


def test_a_lost_sliding_window_mask_is_refused(monkeypatch):
    monkeypatch.setattr("sinkstudy.capture.interface.sdpa_mask", lambda *args, **kwargs: None)
    with pytest.raises(StudyError, match="sliding window of 7"):
        sink_mass(tiny_model("mistral"), prompt_ids(20))


def test_a_batch_is_refused_by_sink_mass():
    with pytest.raises(StudyError, match="one prompt"):
        sink_mass(tiny_model("llama"), torch.zeros(2, 5, dtype=torch.long))
