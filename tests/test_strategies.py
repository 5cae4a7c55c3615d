"""Every strategy at both depths against its readable reference, at awkward sizes."""

from itertools import product

import pytest
import torch
from arithmetic import WIDTH, Truth, assert_within, in_float64, roundings, truth_of
from readable import readable_logits
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.cache import cache_bytes
from sinkstudy.attention.heads import AttentionInputs, HeadToKV
from sinkstudy.attention.pattern import attention_pattern
from sinkstudy.attention.strategies.contract import ReplacedHeads
from sinkstudy.attention.strategies.first_value_mean import running_sum
from sinkstudy.attention.strategies.sink_window import SINK_WINDOW

LAYERS, HEADS = 3, 8
SHARES = {"1:1": 8, "4:1": 2, "8:1": 1}  # query heads per KV head: number of KV heads
WEIGHTS = {layer: {head: 0.02 * (1 + head + 3 * layer) for head in range(HEADS)} for layer in range(LAYERS)}
STRATEGIES = {
    "first_value": {"strategy": "first_value"},
    "first_value_mean": {"strategy": "first_value_mean", "rest_weight": WEIGHTS},
    "first_value_mean, measured": {"strategy": "first_value_mean"},
    "sink_window": {"strategy": "sink_window", "sink_tokens": 2, "window": 5},
    "reuse": {"strategy": "reuse"},
}
HEADS_OF = {
    "one head": {1: [2]},
    "every head": {layer: range(HEADS) for layer in range(LAYERS)},
    "a whole group and more": {0: range(4), 1: [0, 1, 2, 3, 6], 2: [1, 3, 4, 7]},
}


def model_of(share: str):
    return tiny_model("llama", num_attention_heads=HEADS, num_key_value_heads=SHARES[share], num_hidden_layers=LAYERS)


def logits_of(model, plan, *arguments, depth="projections", **named):
    with optimized(model, plan, depth), torch.no_grad():
        return model(*arguments, **named).logits


@pytest.mark.parametrize(("share", "n"), [*product(SHARES, [1, 2, 3, 17]), ("4:1", 129)])
@pytest.mark.parametrize("heads", HEADS_OF)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_equals_its_readable_reference_at_both_depths(strategy, heads, share, n):
    model, ids = model_of(share), prompt_ids(n)
    plan = Plan(heads=HEADS_OF[heads], **STRATEGIES[strategy])
    expected = truth_of(readable_logits, model, ids, plan)
    for depth in ("projections", "attention"):
        assert_within(logits_of(model, plan, ids, depth=depth), expected)


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_heads_chosen_by_the_input_equal_the_readable_reference(strategy, n):
    model, ids = tiny_model("llama"), prompt_ids(n)
    plan = Plan(first_layer_threshold=0.15, **STRATEGIES[strategy] | {"rest_weight": None})
    assert_within(logits_of(model, plan, ids), truth_of(readable_logits, model, ids, plan))


@pytest.mark.parametrize("n", [7, 80])
@pytest.mark.parametrize("heads", ["one head", "a whole group and more"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_slopes(strategy, heads, n):
    model, ids = model_of("4:1").double(), prompt_ids(n)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    direction = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)

    def loss(embeddings):
        return model(inputs_embeds=embeddings).logits.square().mean()

    def slope(step):
        return (loss(embedded + step * direction) - loss(embedded - step * direction)) / (2 * step)

    with optimized(model, Plan(heads=HEADS_OF[heads], **STRATEGIES[strategy]), "attention"):
        with torch.inference_mode():
            loss(embedded)  # nothing that is kept from here may stand in the way of a gradient
        loss(embedded).backward()
        with torch.no_grad():
            wide, narrow, size = slope(2e-3), slope(1e-3), loss(embedded).item()
    # A central difference is off by a third of what halving its step changes, and by the step's share of what the two
    # losses round: the model takes norms and softmax in float32 even here.
    allowed = abs(wide - narrow).item() + roundings(WIDTH) * size / 1e-3
    assert_within((embedded.grad * direction).sum(), Truth(narrow, allowed))


STEPS = 9  # of decoding: more than the window
LASTING = [name for name in STRATEGIES if name != "first_value_mean, measured"]  # measured on the prompt alone


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("heads", HEADS_OF)
@pytest.mark.parametrize("strategy", LASTING)
@torch.no_grad()
def test_a_prefill_in_pieces_and_decoding_equal_a_prefill_of_the_whole(strategy, heads, share, depth):
    model, ids = model_of(share), prompt_ids(20)
    plan = Plan(heads=HEADS_OF[heads], **STRATEGIES[strategy])
    with optimized(model, plan, depth):
        cache = model(ids[:, :9], use_cache=True).past_key_values
        steps = [model(ids[:, 9:15], past_key_values=cache).logits]
        steps += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(15, 20)]
    assert cache.get_seq_length() == 20
    expected = truth_of(readable_logits, model, ids, plan)[:, 9:]
    assert_within(torch.cat(steps, 1), expected)


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize(
    ("n", "sink_tokens", "window"),
    [(20, 1, 1), (20, 1, 6), (20, 6, 1), (20, 3, 40), (20, 40, 3), pytest.param(150, 2, 5, id="forgets twice")],
)
@torch.no_grad()
def test_sinks_and_window_filled_token_by_token(n, sink_tokens, window, depth):
    model, ids = model_of("4:1"), prompt_ids(n)
    heads = HEADS_OF["a whole group and more"]
    plan = Plan(heads=heads, strategy="sink_window", sink_tokens=sink_tokens, window=window)
    with optimized(model, plan, depth):
        cache = model(ids[:, :1], use_cache=True).past_key_values
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(1, n)]
    expected = truth_of(readable_logits, model, ids, plan)[:, 1:]
    assert_within(torch.cat(steps, 1), expected)


# Four query heads read a KV head: in layer 0 they differ, in the others they are alike; the rest have the plan's.
WINDOWS = {0: {0: 3, 1: 9, 3: 1}, 1: dict.fromkeys(range(4), 9), 2: dict.fromkeys(range(4), 1)}


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("heads", HEADS_OF)
@pytest.mark.parametrize("n", [20, 150])
@torch.no_grad()
def test_heads_with_windows_of_their_own(n, heads, depth):
    model, ids = model_of("4:1"), prompt_ids(n)
    plan = Plan(heads=HEADS_OF[heads], windows=WINDOWS, **STRATEGIES["sink_window"])
    expected = truth_of(readable_logits, model, ids, plan)
    assert_within(logits_of(model, plan, ids, depth=depth), expected)
    padded = torch.cat([torch.zeros(1, 7, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 7, dtype=torch.long), torch.ones_like(ids)], 1)
    assert_within(logits_of(model, plan, padded, attention_mask=mask, depth=depth)[:, 7:], expected)
    with optimized(model, plan, depth):
        cache = model(ids[:, :9], use_cache=True).past_key_values
        steps = [model(ids[:, 9:15], past_key_values=cache).logits]
        cache.batch_repeat_interleave(3)
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        cache.batch_select_indices(torch.tensor([1]))
        steps += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(15, n)]
    assert_within(torch.cat(steps, 1), expected[:, 9:])


@torch.no_grad()
def test_every_kv_head_keeps_its_own_window_of_the_cache():
    model, ids = model_of("4:1"), prompt_ids(100)
    plan = Plan(heads=HEADS_OF["every head"], windows=WINDOWS, **STRATEGIES["sink_window"])
    with optimized(model, plan):
        cache = model(ids, use_cache=True).past_key_values
    # Two first tokens, and of the widest window all but the query's own place; half of the KV heads have the plan's 5.
    numbers = sum(2 + window - 1 for window in (9, 5, 9, 5, 1, 5)) * model.config.head_dim * 2
    assert cache_bytes(cache) == numbers * 4


@pytest.mark.parametrize("kv_heads", [(0, 0, 0, 1, 1, 1), (0, 1, 1)], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("n", "sink_tokens", "window"),
    [(1, 1, 1), (70, 2, 5), (136, 3, 5), (137, 3, 5), (300, 4, 200), (1300, 4, 600), (40, 50, 3), (90, 1, 1)],
)
def test_a_window_without_padding_equals_the_mask_it_stands_for(n, sink_tokens, window, kv_heads):
    heads, expected = windowed(n, sink_tokens, window, kv_heads)
    torch.testing.assert_close(SINK_WINDOW.from_heads(heads), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("of", range(3), ids=["query", "key", "value"])
def test_a_window_of_several_blocks_has_the_gradients_of_the_mask_it_stands_for(of):
    """Log-sum-exps, by which parts are merged where no gradient is asked for, let none through."""
    heads, expected = windowed(300, 4, 200, (0, 0, 0, 1, 1, 1), leaf=of)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((SINK_WINDOW.from_heads(heads) * weight).sum(), heads[of])[0]
    exact = torch.autograd.grad((expected * weight).sum(), heads[of])[0]
    torch.testing.assert_close(found, exact, atol=1e-11, rtol=0)


def windowed(n, sink_tokens, window, kv_heads, leaf=None):
    """Heads under a window, and their outputs by a mask; of the states, `leaf` records gradients."""
    draw = torch.Generator().manual_seed(0)
    sizes = (len(kv_heads), 2, 2)
    states = [torch.randn(2, heads, n, 8, generator=draw, dtype=torch.float64) for heads in sizes]
    if leaf is not None:
        states[leaf].requires_grad_()
    query, key, value = states
    query_at, key_at = torch.arange(n)[:, None], torch.arange(n)
    seen = (key_at <= query_at) & ((key_at > query_at - window) | (key_at < sink_tokens))
    scores = (query @ key[:, kv_heads].mT * 0.3).masked_fill(~seen, float("-inf"))
    to_kv = HeadToKV.of(kv_heads, query.device)
    heads = ReplacedHeads(query, key, value, to_kv, None, 0.3, sink_tokens, window, None, {}, lambda: None)
    return heads, scores.softmax(-1) @ value[:, kv_heads]


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("strategy", LASTING)
@torch.no_grad()
def test_a_piece_longer_than_every_block_after_a_cached_one(strategy, depth):
    model, ids = model_of("4:1"), prompt_ids(160)
    plan = Plan(heads=HEADS_OF["a whole group and more"], **STRATEGIES[strategy])
    with optimized(model, plan, depth):
        cache = model(ids[:, :20], use_cache=True).past_key_values
        piece = model(ids[:, 20:], past_key_values=cache).logits
    assert_within(piece, truth_of(readable_logits, model, ids, plan)[:, 20:])


@pytest.mark.parametrize("strategy", ["first_value", "sink_window", "reuse"])
@torch.no_grad()
def test_what_the_first_layer_decided_lasts_through_decoding(strategy):
    model, ids = tiny_model("llama"), prompt_ids(20)
    settings = STRATEGIES[strategy]
    with optimized(model, Plan(first_layer_threshold=0.15, **settings)) as run:
        cache = model(ids[:, :15], use_cache=True).past_key_values
        heads = run.replaced_heads(1)
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(15, 20)]
    assert 0 < len(heads) < 4
    expected = truth_of(readable_logits, model, ids, Plan(heads={1: heads, 2: heads}, **settings))[:, 15:]
    assert_within(torch.cat(steps, 1), expected)


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("heads", [{1: [0, 1], 2: [1]}, {1: [0, 1, 2, 3], 2: [1]}, {2: [3]}])
@torch.no_grad()
def test_reuse_from_a_first_layer_whose_window_is_behind_later_layers(heads, depth):
    layers = ["sliding_attention", "full_attention", "full_attention"]
    model, ids, plan = (
        tiny_model("gemma3_text", layer_types=layers),
        prompt_ids(20),
        Plan(heads=heads, strategy="reuse"),
    )
    assert model.config.sliding_window < 12
    expected = truth_of(readable_logits, model, ids, plan)
    with optimized(model, plan, depth):
        assert_within(model(ids, use_cache=False).logits, expected)
        cache = model(ids[:, :12]).past_key_values
        piece = model(ids[:, 12:15], past_key_values=cache).logits
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(15, 20)]
    assert_within(torch.cat([piece, *steps], 1), expected[:, 12:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_patterns_of_large_scores_stay_finite_in_every_dtype(dtype):
    query = torch.full((1, 4, 5, 64), 40.0, dtype=dtype)
    key = query[:, :2] * torch.linspace(1, 0.5, 5, dtype=dtype)[:, None]
    assert query[0, 0, 0].float() @ key[0, 0, 0].float() > torch.finfo(torch.float16).max
    pattern = attention_pattern(AttentionInputs(query, key, key, None, 1 / 64), range(4))
    assert pattern.dtype == torch.float32
    # The next key's weight is exp(-200): what is left to round is a quotient of equal numbers.
    torch.testing.assert_close(pattern[..., 0], torch.ones(1, 4, 5), atol=roundings(2), rtol=0)


def padded(prompts, side):
    """Token ids and attention mask (batch, query), positions, and where each prompt lies."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    places = [slice(longest - len(p), None) if side == "left" else slice(0, len(p)) for p in prompts]
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        ids[row, place], mask[row, place] = prompt, 1
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), places


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("strategy", LASTING)
@torch.no_grad()
def test_a_padded_batch_and_its_decoding_equal_its_prompts_alone(strategy, share, side, depth):
    model = model_of(share)
    prompts = [prompt_ids(n, seed=n)[0] for n in (4, 11, 1, 7)]
    plan = Plan(heads=HEADS_OF["a whole group and more"], **STRATEGIES[strategy])
    ids, mask, positions, places = padded(prompts, side)
    following = prompt_ids(4 * STEPS, seed=99).reshape(4, STEPS)  # more tokens for each
    steps = []
    with optimized(model, plan, depth):
        prefill = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        for i in range(STEPS):
            mask = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], 1)
            step = model(
                following[:, i : i + 1],
                attention_mask=mask,
                position_ids=positions.amax(-1, keepdim=True) + 1 + i,
                past_key_values=prefill.past_key_values,
            )
            steps.append(step.logits)
    decoded = torch.cat(steps, 1)
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        alone = truth_of(readable_logits, model, torch.cat([prompt, following[row]])[None], plan)[0]
        assert_within(prefill.logits[row, place], alone[:-STEPS])
        assert_within(decoded[row], alone[-STEPS:])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_weight_measured_in_a_padded_batch_is_that_of_the_prompt_alone(side):
    model, plan = model_of("4:1"), Plan(heads=HEADS_OF["a whole group and more"], strategy="first_value_mean")
    prompts = [prompt_ids(n, seed=n)[0] for n in (40, 23, 9, 1)]
    ids, mask, positions, places = padded(prompts, side)
    batch = logits_of(model, plan, ids, attention_mask=mask, position_ids=positions)
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        assert_within(batch[row, place], truth_of(readable_logits, model, prompt[None], plan)[0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_bfloat16_errs_no_more_than_twice_as_much_as_its_readable_reference_does_in_it(strategy):
    plan = Plan(heads=HEADS_OF["a whole group and more"], **STRATEGIES[strategy])
    model, ids = model_of("4:1").to(torch.bfloat16), prompt_ids(70)
    with in_float64(model) as wide:
        exact = readable_logits(wide, ids, plan)
    plain = (readable_logits(model, ids, plan).double() - exact).norm()
    for depth in ("projections", "attention"):
        rounded = logits_of(model, plan, ids, depth=depth)
        assert rounded.dtype == torch.bfloat16
        assert (rounded.double() - exact).norm() <= 2 * plain


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 300])
def test_the_blocked_running_sum_is_the_cumulative_sum(n):
    x = torch.randn(2, n, 3, 5, dtype=torch.float64)
    before = x.clone()
    bound = roundings(n, x.dtype) * x.abs().cumsum(1).amax().item()
    assert_within(running_sum(x), Truth(x.cumsum(1), 2 * bound))  # both sums round
    assert torch.equal(x, before)


CAUSAL = torch.ones(1, 1, 14, 14, dtype=torch.bool).tril()
PACKED = torch.cat([torch.arange(6), torch.arange(8)])[None]
NOT_COVERED = {
    "numbers": {"attention_mask": torch.zeros(CAUSAL.shape).masked_fill(~CAUSAL, float("-inf"))},
    "a prefix that sees itself": {"attention_mask": CAUSAL | (torch.arange(14) < 5)},
    "two prompts in one row": {"position_ids": PACKED, "use_cache": False},
}


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_masks_that_are_not_causal_with_padding_alone_are_refused(strategy, depth, refuses):
    model, ids, plan = model_of("4:1"), prompt_ids(14), Plan(heads={1: [2], 2: [0, 1]}, **STRATEGIES[strategy])
    with optimized(model, plan, depth):
        for named in NOT_COVERED.values():
            with refuses("attention mask"):
                model(ids, **named)
        torch.testing.assert_close(model(ids, attention_mask=CAUSAL).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@torch.no_grad()
def test_under_autocast_a_plan_errs_as_half_precision_does(strategy, depth):
    model, ids, plan = model_of("4:1"), prompt_ids(14), Plan(heads={1: [2], 2: [0, 1]}, **STRATEGIES[strategy])
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(ids).logits
        with optimized(model, plan, depth):
            under = model(ids).logits
    error = (plain - model(ids).logits).abs().max()
    with optimized(model, plan, depth):
        assert (under - model(ids).logits).abs().max() <= 2 * error


@torch.no_grad()
def test_a_row_of_padding_alone_leaves_the_others_as_they_are():
    model, ids, plan = model_of("4:1"), prompt_ids(14), Plan(heads={1: [2]}, strategy="first_value_mean")
    mask = torch.stack([torch.zeros(14, dtype=torch.long), torch.ones(14, dtype=torch.long)])
    with optimized(model, plan):
        logits = model(ids.expand(2, -1), attention_mask=mask).logits[1:]
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused(strategy, refuses):
    """`reuse` would lose those that reach the first layer's pattern from later layers."""
    plan, gradients = Plan(heads={1: [2], 2: [0, 1]}, **STRATEGIES[strategy]), []
    for checkpointing in (False, True):
        model, ids = model_of("4:1").train(), prompt_ids(14)
        if checkpointing:
            model.gradient_checkpointing_enable()
        with optimized(model, plan):
            if checkpointing and strategy == "reuse":
                with refuses("gradient_checkpointing_disable"):
                    model(ids, labels=ids)
                return
            model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
