"""The timing stage on a tiny model: what is measured and counted, not how fast."""

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from arithmetic import truth_of
from readable import readable_logits
from tiny import tiny_model

from sinkstudy.attention import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.benchmark import benchmark_table, usable_lengths, windows
from sinkstudy.evaluation.ceiling import Shape, decode_ceiling, prefill_ceiling
from sinkstudy.evaluation.quality import compare
from sinkstudy.evaluation.timing import Alternative, Rounds, interleaved, peak_bytes
from sinkstudy.evaluation.variants import at_work, variants_of

GRID = {"lengths": [8, 20], "batches": [1, 3], "strategies": ["reuse", "first_value"]}
GRID |= {"repeats": 3, "precision": math.inf, "seconds_per_cell": 0}
TOKENS = [1, *np.random.default_rng(0).integers(3, 99, 60).tolist()]
HEADS = {1: [0, 1], 2: [3]}
PLANS = [Plan(heads=HEADS, policy="by hand"), Plan(policy="nothing")]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table(model):
    return benchmark_table(model, "tiny", TOKENS, PLANS, GRID)


def test_every_cell_has_every_variant_once(table):
    assert len(table) == 2 * 2 * 2 * (3 + 2)
    assert not table.duplicated(["phase", "n_tokens", "batch", "strategy", "policy"]).any()


def test_baselines_are_compared_with_themselves(table):
    speedup = table.query("strategy == 'sdpa' and policy == 'none'")[["speedup_low", "speedup_vs_sdpa", "speedup_high"]]
    assert (speedup == 1).all(axis=None)
    assert (table.query("strategy == 'eager'")["speedup_vs_eager"] == 1).all()
    assert (table.query("heads_replaced == 0")["ceiling"] == 1).all()
    np.testing.assert_allclose(table["speedup_of_ceiling"], table["speedup_vs_sdpa"] / table["ceiling"])
    share = table.query("strategy == 'sdpa' and policy == 'none'")["attention_share"]
    assert share.notna().all()
    assert (share < 1).all()


def test_quality_is_that_of_the_replaced_heads(model, table):
    row = table.query("phase == 'prefill' and n_tokens == 20 and batch == 3 and strategy == 'first_value'").iloc[0]
    plan = Plan(heads=HEADS, strategy="first_value")

    def costs(model):
        """KL divergence and agreement of every window under the readable reference, (measure, window)."""
        found = [
            compare(*(readable_logits(model, ids, one) for one in (Plan(), plan)), ids)
            for ids in windows(TOKENS, 20, 3).split(1)
        ]
        return torch.tensor([[cost.kl for cost in found], [cost.top1_agreement for cost in found]]).double()

    expected = truth_of(lambda model: costs(model)[0], model)
    assert row["kl"] == pytest.approx(expected.value.mean().item(), abs=expected.allowed)
    assert row["top1_agreement"] == pytest.approx(costs(model)[1].mean().item())
    assert row["kl"] > 1e-3
    assert (row["heads_replaced"], row["head_fraction"]) == (3, 0.25)
    baseline = table.query("strategy == 'sdpa'")
    assert (baseline["kl"] == 0).all()
    assert (baseline["heads_replaced"] == 0).all()


def test_a_cut_model_has_a_smaller_cache(table):
    cell = table.query("n_tokens == 20 and batch == 3 and phase == 'prefill' and policy != 'again'")
    cell = cell.set_index("strategy")
    assert cell["depth"].to_dict() == {
        "eager": "none",
        "sdpa": "none",
        "reuse": "attention",
        "first_value": "projections",
    }
    whole = 3 * 3 * 2 * 2 * 8 * 20 * 4 / 1e6  # batch, layer, key and value, KV head, width, token, bytes
    assert cell.loc["sdpa", "kv_cache_mb"] == cell.loc["eager", "kv_cache_mb"] == pytest.approx(whole)
    assert cell.loc["reuse", "kv_cache_mb"] == pytest.approx(whole)
    # One of six KV heads less, and a vector of the output's width for two layers.
    assert cell.loc["first_value", "kv_cache_mb"] == pytest.approx(whole * 5 / 6 + 3 * 2 * 32 * 4 / 1e6)
    assert (cell["peak_mb"] > 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_prefill_ceiling_counts_what_the_shapes_say(model, strategy):
    n, width, hidden, sink_tokens, window = 20, 8, 32, 2, 5
    plan = Plan(heads=HEADS, strategy=strategy, sink_tokens=sink_tokens, window=window)
    linear = n * 3 * (hidden * hidden * 2 + 2 * hidden * 16 + 3 * hidden * 48) + hidden * 99  # logits of one token
    attended = sum(i + 1 for i in range(n))
    left = {
        "first_value": 0,
        "first_value_mean": 2 * n * width,  # a running sum, and a mixture
        "reuse": attended * width,
        "sink_window": sum(min(i + 1, sink_tokens + window) for i in range(n)) * 2 * width,
    }[strategy]
    total = linear + 12 * attended * 2 * width
    at_attention = total - 3 * (attended * 2 * width - left)
    assert prefill_ceiling(Shape.of(model), n, HEADS, plan, []) == pytest.approx(total / at_attention)
    rows = n * hidden * width
    cut = 3 * rows + 1 * rows  # query rows of three heads, key rows of one KV head
    cut += 3 * rows + 1 * rows if strategy == "first_value" else 0  # output columns, value rows
    if strategy.startswith("first_value"):  # the others read queries and keys
        assert prefill_ceiling(Shape.of(model), n, HEADS, plan, [1, 2]) == pytest.approx(total / (at_attention - cut))


def test_the_decode_ceiling_counts_weights_and_cached_keys_and_values(model):
    n, batch, width, hidden = 50, 3, 8, 32
    weights = 3 * (hidden * hidden * 2 + 2 * hidden * 16 + 3 * hidden * 48) + hidden * 99
    kv_head = batch * n * 2 * width
    total = weights + 6 * kv_head
    shape = Shape.of(model)
    first, mean = (Plan(heads=HEADS, strategy=s) for s in ("first_value", "first_value_mean"))
    rows = hidden * width
    expected = total / (total - kv_head - 8 * rows)
    assert decode_ceiling(shape, n, batch, HEADS, first, [1, 2]) == pytest.approx(expected)
    assert decode_ceiling(shape, n, batch, HEADS, mean, []) == pytest.approx(total / (total - 0.5 * kv_head))
    reuse = Plan(heads=HEADS, strategy="reuse")  # values are read, keys are not
    assert decode_ceiling(shape, n, batch, HEADS, reuse, []) == pytest.approx(total / (total - 0.5 * kv_head))
    window = Plan(heads=HEADS, strategy="sink_window", sink_tokens=3, window=7)
    assert decode_ceiling(shape, n, batch, HEADS, window, []) == pytest.approx(total / (total - kv_head * 40 / 50))


def test_ceilings_count_every_head_with_its_own_window(model):
    shape, n, wide = Shape.of(model), 50, {0: [0, 1], 2: [0, 1, 2, 3]}  # of six heads, two read each KV head
    windows = {0: {0: 4, 1: 4}, 2: {0: 6, 1: 6}}
    plan = Plan(heads=wide, strategy="sink_window", sink_tokens=3, window=7, windows=windows)
    alone = [({0: [0, 1]}, 4), ({2: [0, 1]}, 6), ({2: [2, 3]}, 7)]
    for ceiling in (partial(prefill_ceiling, shape, n), partial(decode_ceiling, shape, n, 3)):
        # Of a whole, what a plan leaves out is what its parts do.
        left_out = [1 - 1 / ceiling(of, replace(plan, heads=of, windows=None, window=w), []) for of, w in alone]
        assert 1 - 1 / ceiling(wide, plan, []) == pytest.approx(sum(left_out))


@pytest.mark.parametrize("model_type", ["bloom", "gpt_oss", "gemma2"])
def test_a_model_that_sdpa_does_not_cover_is_timed_as_it_is(model_type):
    table = benchmark_table(tiny_model(model_type), model_type, TOKENS, [Plan(first_layer_threshold=0.5)], GRID)
    assert table["strategy"].tolist() == ["eager"] * 8
    assert table["speedup_vs_sdpa"].isna().all()
    assert (table["kl"] == 0).all()


def test_a_model_without_a_kv_cache_is_not_decoded():
    table = benchmark_table(tiny_model("openai-gpt"), "gpt", TOKENS, [], GRID)
    assert set(table["phase"]) == {"prefill"}
    assert (table["kv_cache_mb"] == 0).all()


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_5_text"])
def test_of_a_hybrid_the_layers_that_attend_are_timed_and_counted(model_type):
    model, plan = tiny_model(model_type), Plan(heads={1: [0, 1]}, strategy="sink_window", window=4)
    table = benchmark_table(model, model_type, TOKENS, [plan], GRID | {"lengths": [20], "batches": [1]})
    decoded = table[table["phase"] == "decode"].set_index("policy")
    shape = Shape.of(model)
    assert shape.layers == 2
    assert decoded["head_fraction"]["by hand"] == 2 / (2 * shape.heads)
    assert decoded["kv_cache_mb"]["none"].iloc[0] == 2 * 2 * shape.kv_heads * 20 * shape.width * 4 / 1e6
    assert decoded["heads_replaced"]["by hand"] == 2


def test_of_a_hybrid_no_head_is_replaced_in_layers_that_do_not_attend():
    model, ids = tiny_model("lfm2"), torch.tensor([TOKENS[:9]])  # Its first layer is a convolution.
    (found,) = at_work(model, variants_of(model, [Plan(first_layer_threshold=0.1)], ["first_value"]), ids)
    assert set(found.heads) == {2}


def test_heads_decided_by_the_input_stay_replaced_in_decoding(model):
    plan = Plan(first_layer_threshold=0.15, policy="first_layer")
    table = benchmark_table(model, "tiny", TOKENS, [plan], GRID | {"lengths": [20], "batches": [1]})
    replaced = table.query("strategy == 'first_value'").set_index("phase")["heads_replaced"]
    assert replaced["prefill"] == replaced["decode"] > 0


def test_ceilings_count_the_linear_layers_that_gpt2_has_of_its_own_kind():
    shape = Shape.of(tiny_model("gpt2"))
    attention, mlp = 4 * shape.hidden**2, 2 * shape.hidden * 4 * shape.hidden
    assert shape.weights == shape.head_weights + shape.layers * (attention + mlp)


def test_ceilings_take_the_mean_width_where_layers_differ():
    model = tiny_model("llama")
    alike = Shape.of(model)
    model.config.per_layer_config = {0: {"head_dim": 3 * int(alike.width)}}
    layers = model.config.num_hidden_layers
    assert Shape.of(model).width == pytest.approx(alike.width * (layers + 2) / layers)


@pytest.mark.parametrize(("device", "together"), [("cpu", True), ("cuda", False)])
def test_alternatives_take_turns_each_in_its_own_context(monkeypatch, device, together):
    """On a GPU, which is made of paper here, one has done all its calls before the next begins."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    events = []

    def alternative(name):
        @contextmanager
        def context():
            events.append(f"enter {name}")
            yield
            events.append(f"leave {name}")

        return Alternative(context, lambda: events.append(name))

    samples = interleaved([alternative("a"), alternative("b")], Rounds(20), torch.device(device), calls_per_sample=2)
    assert samples.shape == (20, 2)
    assert (samples > 0).all()
    rounds = [events[end - 10 : end] for end in range(len(events), len(events) - 200, -10)]
    if together:
        # Each makes one call to warm up, and then both have two turns.
        assert all(one[:4] == ["enter a", "enter b", "a", "b"] for one in rounds)
        assert all(one[8:] == ["leave b", "leave a"] for one in rounds)
        turns = ["".join(one[4:8]) for one in rounds]
        orders = {"abab", "abba", "baab", "baba"}
    else:
        blocks = {name: [f"enter {name}", *(name * 3), f"leave {name}"] for name in "ab"}
        turns = ["ab" if one == blocks["a"] + blocks["b"] else "ba" for one in rounds]
        assert all(one in (blocks["a"] + blocks["b"], blocks["b"] + blocks["a"]) for one in rounds)
        orders = {"ab", "ba"}
    assert set(turns) == orders


def test_a_sample_belongs_to_its_alternative():
    calls = [lambda: None, lambda: time.sleep(0.005)]
    samples = interleaved([Alternative(nullcontext, call) for call in calls], Rounds(7), CPU, calls_per_sample=1)
    assert np.median(samples[:, 0]) < 0.005 <= samples[:, 1].min()


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.ones(1000, 1000)

    def call():
        one = x + 1
        two = one + 1  # two arrays of 4 MB at once
        del one
        return (two + 1).sum()

    def nothing():
        return x.shape

    assert peak_bytes(Alternative(nullcontext, call), CPU) == pytest.approx(8e6, rel=0.01)
    assert peak_bytes(Alternative(nullcontext, nothing), CPU) == 0


def test_windows_keep_the_first_token_and_stay_inside_the_text():
    ids = windows(list(range(100, 130)), 10, 4)
    assert ids.shape == (4, 10)
    assert (ids[:, 0] == 100).all()
    assert (ids[:, 1:].diff(dim=1) == 1).all()
    assert (ids[0, 1].item(), ids[-1, -1].item()) == (101, 129)


def test_lengths_beyond_context_or_text_are_left_out_and_said(model, capsys):
    assert usable_lengths(model, "tiny", 61, [8, 61, 62]) == [8, 61]
    assert "left out lengths 62" in capsys.readouterr().err
    with pytest.raises(StudyError, match=r"'tiny' takes 1024 tokens and the text has 5"):
        usable_lengths(model, "tiny", 5, [8, 20])
