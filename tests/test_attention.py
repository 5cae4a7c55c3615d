"""Optimized models against a slow, readable reference that works on eager attention's own maps."""

import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.quality import compare
from sinkstudy.errors import StudyError

GROUPS = {"1:1": {"num_key_value_heads": 4}, "4:1": {"num_key_value_heads": 1}, "2:1": {"num_key_value_heads": 2}}


def readable_logits(model, ids, plan, padding=0):
    """Eager attention, with the rows of replaced heads rewritten head by head; `padding` tokens on the left of ids.

    Runs one prompt without padding, so it also says what a padded batch must give.
    """
    first_layer_map = {}

    def attention(module, query, key, value, attention_mask, scaling=None, **_):
        output = torch.empty_like(query)
        groups = query.shape[1] // key.shape[1]
        n = query.shape[2]
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        maps = []
        for head in range(query.shape[1]):
            scores = query[0, head] @ key[0, head // groups].T * scaling
            maps.append(torch.softmax(scores.masked_fill(future, float("-inf")), -1))
        if module.layer_idx == 0:
            first_layer_map.update(enumerate(maps))
        for head, own_map in enumerate(maps):
            values = value[0, head // groups]
            rows = own_map @ values
            if head in replaced_heads(plan, module.layer_idx, first_layer_map):
                if plan.strategy == "first_value":
                    rows = values[0].expand_as(rows)
                elif module.layer_idx > 0:
                    rows = first_layer_map[head] @ values
            output[0, head] = rows
        return output.transpose(1, 2).contiguous(), None

    from transformers import AttentionInterface

    AttentionInterface.register("readable", attention)
    before = model.config._attn_implementation
    model.set_attn_implementation("readable")
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        model.set_attn_implementation(before)


def replaced_heads(plan, layer, first_layer_map):
    if plan.first_layer_threshold is None:
        return plan.heads.get(layer, ())
    if layer == 0:
        return ()
    return [h for h, m in first_layer_map.items() if m[:, 0].mean() >= plan.first_layer_threshold]


PLANS = {
    "one head": {"heads": {1: [2]}},
    "every head": {"heads": {0: range(4), 1: range(4), 2: range(4)}},
    "half": {"heads": {1: [0, 1], 2: [1, 3]}},
    "by input": {"first_layer_threshold": 0.3},
}


@pytest.mark.parametrize("strategy", ["first_value", "reuse"])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 129])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_a_strategy_equals_its_readable_reference(strategy, n, groups, name):
    model, ids = tiny_model("llama", **GROUPS[groups]), prompt_ids(n)
    plan = Plan(strategy=strategy, **PLANS[name])
    with optimized(model, plan):
        logits = model(ids).logits
    torch.testing.assert_close(logits, readable_logits(model, ids, plan), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["first_value", "reuse"])
@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_decoding_after_a_prefill_equals_a_prefill_of_the_whole(strategy, name):
    model, ids = tiny_model("llama"), prompt_ids(20)
    plan = Plan(strategy=strategy, **PLANS[name])
    with optimized(model, plan):
        cache = model(ids[:, :15], use_cache=True).past_key_values
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(15, 20)]
    decided = PLANS[name].get("first_layer_threshold")
    if decided is not None:  # what the prefill decided lasts, so the whole is run with those heads
        with optimized(model, plan) as run:
            model(ids[:, :15])
            heads = run.first_layer_heads
        plan = Plan(strategy=strategy, heads={1: heads, 2: heads})
    with optimized(model, plan):
        whole = model(ids).logits[:, 15:]
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decoding_from_a_cache_filled_outside_the_block():
    model, ids = tiny_model("llama"), prompt_ids(12)
    plan = Plan(heads={2: [0, 1]}, strategy="first_value")  # the last layer, so that the cache is the same
    cache = model(ids[:, :11], use_cache=True).past_key_values
    with optimized(model, plan):
        step = model(ids[:, 11:], past_key_values=cache).logits
        whole = model(ids).logits[:, 11:]
    torch.testing.assert_close(step, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("strategy", ["first_value", "reuse"])
@torch.no_grad()
def test_a_padded_batch_equals_its_prompts_alone(side, strategy):
    model = tiny_model("llama")
    prompts = [prompt_ids(n, seed=n)[0] for n in (4, 11, 7)]
    longest = max(map(len, prompts))
    batch, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    places = [slice(longest - len(p), None) if side == "left" else slice(0, len(p)) for p in prompts]
    for row, (ids, place) in enumerate(zip(prompts, places, strict=True)):
        batch[row, place], mask[row, place] = ids, 1
    plan = Plan(heads={1: [0, 3], 2: [1]}, strategy=strategy)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with optimized(model, plan):
        logits = model(batch, attention_mask=mask, position_ids=positions).logits
    for row, (ids, place) in enumerate(zip(prompts, places, strict=True)):
        alone = readable_logits(model, ids[None], plan)[0]
        torch.testing.assert_close(logits[row, place], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generate_works_and_the_model_is_restored_exactly():
    model, ids = tiny_model("llama"), prompt_ids(9)
    before = model(ids).logits
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)
    with optimized(model, Plan(heads={1: [0, 1]}, strategy="first_value")):
        model.generate(ids, max_new_tokens=8, do_sample=False)
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), plain)
    assert model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_an_empty_plan_changes_nothing():
    model, ids = tiny_model("llama"), prompt_ids(33)
    before = model(ids).logits
    with optimized(model, Plan()):
        assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_inputs_beyond_max_tokens_run_unchanged():
    model = tiny_model("llama")
    plan = Plan(heads={1: [0]}, max_tokens=10)
    for n, changed in ((10, True), (11, False)):
        before = model(prompt_ids(n)).logits
        with optimized(model, plan):
            assert torch.equal(model(prompt_ids(n)).logits, before) is not changed


@pytest.mark.parametrize("heads", [{3: [0]}, {0: [4]}, {-1: [0]}, {1: [-1]}])
def test_a_head_the_model_does_not_have_is_refused(heads):
    with (
        pytest.raises(StudyError, match=r"does not exist; the model has layers 0 to 2 of heads 0 to 3"),
        optimized(tiny_model("llama"), Plan(heads=heads)),
    ):
        pass


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_attention_that_plans_do_not_cover_is_refused(model_type):
    model = tiny_model(model_type)
    with pytest.raises(StudyError, match="plans do not cover"), optimized(model, Plan(heads={1: [0]})):
        model(prompt_ids(5))


def test_a_plan_survives_its_file(tmp_path):
    plan = Plan(heads={3: [2, 1], 0: [5]}, strategy="reuse", max_tokens=7, policy="consistent")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.heads == {0: [5], 3: [1, 2]}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"heads": {"a": [1]}}', '{"heads": [1]}', '{"colour": 1}'])
def test_a_file_that_is_no_plan_is_named(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(StudyError, match=r"plan\.json"):
        Plan.load(path)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(StudyError, match="use one of reuse, first_value"):
        Plan(strategy="magic")


def test_quality_of_hand_computed_distributions():
    reference = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]))
    modified = torch.log(torch.tensor([[[0.25, 0.75], [0.8, 0.2]]]))
    ids = torch.tensor([[0, 1]])
    quality = compare(reference, modified, ids)
    first = 0.5 * torch.log(torch.tensor(0.5 / 0.25)) + 0.5 * torch.log(torch.tensor(0.5 / 0.75))
    second = 0.9 * torch.log(torch.tensor(0.9 / 0.8)) + 0.1 * torch.log(torch.tensor(0.1 / 0.2))
    assert quality.kl == pytest.approx((first + second).item() / 2, rel=1e-6)
    assert quality.top1_agreement == 0.5  # a tie goes to the first token, so the first position differs
    assert quality.perplexity_ratio == pytest.approx(0.5 / 0.75)
