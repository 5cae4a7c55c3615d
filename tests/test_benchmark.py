"""The timing stage on a tiny model: what is measured, not how fast."""

import numpy as np
import pytest
import torch
from tiny import tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.benchmark import benchmark_table, usable_lengths, windows
from sinkstudy.attention.ceiling import prefill_ceiling
from sinkstudy.attention.quality import compare
from sinkstudy.errors import StudyError

GRID = {"lengths": [8, 20], "batches": [1, 3], "strategies": ["reuse", "first_value"], "repeats": 3}
TOKENS = [1, *np.random.default_rng(0).integers(3, 99, 60).tolist()]
PLANS = [Plan(heads={1: [0, 2], 2: [3]}, policy="by hand")]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table(model):
    return benchmark_table(model, "tiny", TOKENS, PLANS, GRID)


def test_every_cell_has_every_variant_once(table):
    assert len(table) == 2 * 2 * (2 + 2)
    assert not table.duplicated(["n_tokens", "batch", "strategy", "policy"]).any()


def test_speedups_are_ratios_of_the_medians_of_their_own_cell(table):
    for _, cell in table.groupby(["n_tokens", "batch"]):
        times = cell.set_index("strategy")["median_s"]
        np.testing.assert_allclose(cell["speedup_vs_sdpa"], times["sdpa"] / cell["median_s"])
        np.testing.assert_allclose(cell["speedup_vs_eager"], times["eager"] / cell["median_s"])


def test_quality_is_that_of_the_replaced_heads(model, table):
    row = table.query("n_tokens == 20 and batch == 3 and strategy == 'first_value'").iloc[0]
    ids = windows(TOKENS, 20, 3)
    with torch.no_grad():
        before = model(ids).logits
        with optimized(model, Plan(heads=PLANS[0].heads, strategy="first_value")):
            after = model(ids).logits
    expected = compare(before, after, ids)
    assert (row["kl"], row["top1_agreement"]) == pytest.approx((expected.kl, expected.top1_agreement), rel=1e-6)
    assert row["kl"] > 1e-3
    assert (row["heads_replaced"], row["head_fraction"]) == (3, 0.25)
    baseline = table.query("strategy == 'sdpa'")
    assert (baseline["kl"] == 0).all()
    assert (baseline["heads_replaced"] == 0).all()


def test_the_ceiling_counts_what_the_shapes_say(model):
    n, width, heads = 20, 8, 12
    linear = 2 * n * (3 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 99)
    per_head = sum(2 * 2 * width * (i + 1) for i in range(n))  # scores and weighted sum over the keys of each query
    total = linear + heads * per_head
    assert prefill_ceiling(model, n, 3, "first_value") == pytest.approx(total / (total - 3 * per_head))
    assert prefill_ceiling(model, n, 3, "reuse") == pytest.approx(total / (total - 1.5 * per_head))


@pytest.mark.parametrize("model_type", ["bloom", "gpt_oss", "gemma2"])
def test_a_model_that_sdpa_does_not_cover_is_timed_as_it_is(model_type):
    table = benchmark_table(tiny_model(model_type), model_type, TOKENS, [Plan(first_layer_threshold=0.5)], GRID)
    assert table["strategy"].tolist() == ["eager"] * 4
    assert table["speedup_vs_sdpa"].isna().all()
    assert (table["kl"] == 0).all()


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
