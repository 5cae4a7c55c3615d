"""The comparison with other methods: what its table says of seconds and rows, and that all methods get the same."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from study import ROOT
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.quality import compare

sys.path.insert(0, str(ROOT / "benchmarks/peers"))
from measure import UNMODIFIED, Method, held_bytes, quality
from table import KEY, NOTES, check_yardstick, figure, merged, timing_rows
from tasks import kv_share, plans_of_levels

PLAN = Plan(heads={0: [0, 1], 2: [2, 3]}, strategy="sink_window", sink_tokens=2, window=16)


def row(method="SnapKV", level=0.5, environment="kvpress", n_tokens=2048, **values) -> dict:
    return dict(zip(KEY, [environment, n_tokens, method, level], strict=True)) | values


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_speeds_are_those_over_the_unmodified_model_of_the_same_environment():
    rng, rows = np.random.default_rng(0), []
    for environment, unit in {"sinkstudy": 1.0, "kvpress": 3.0}.items():
        for number in range(20):
            drift = unit * rng.uniform(1, 2)
            for method, seconds in {"sdpa": 1.0, "SnapKV": 0.5}.items():
                prefill = drift * seconds * rng.normal(1, 0.01)
                level, timed = 0.5 * (method != "sdpa"), {"prefill": prefill, "decode": drift}
                rows.append(row(method, level, environment, round=number, **timed))
    found = timing_rows(pd.DataFrame(rows)).set_index(["environment", "method"])
    for environment in ("sinkstudy", "kvpress"):
        press = found.loc[(environment, "SnapKV")]
        assert press["prefill_vs_sdpa"] == pytest.approx(2, rel=0.02)
        assert press["prefill_vs_sdpa_low"] < 2 < press["prefill_vs_sdpa_high"] < 2.1
        assert press["decode_vs_sdpa"] == pytest.approx(1)
        assert found.loc[(environment, "sdpa"), "prefill_vs_sdpa_low"] == 1
    assert (found["rounds"] == 20).all()


def test_what_is_not_measured_anew_stays_in_the_table():
    earlier = pd.DataFrame([row(kl=0.1, prefill_s=2.0), row("sdpa", 0, kl=0.0)])
    table = merged(earlier, pd.DataFrame([row(kl=0.2), row("StreamingLLM", kl=0.3)])).set_index("method")
    assert table["kl"].to_dict() == {"sdpa": 0.0, "StreamingLLM": 0.3, "SnapKV": 0.2}
    assert table.loc["SnapKV", "prefill_s"] == 2.0
    assert table["note"].to_dict() == {method: NOTES[method] for method in table.index}
    assert len(figure(table.reset_index().assign(kv_mb=1, kv_read_mb=0.5, prefill_vs_sdpa=1.5)).axes) == 2


def test_environments_in_which_the_unmodified_model_differs_are_refused():
    same = [row("sdpa", 0, one, perplexity=10 + i / 1e4) for i, one in enumerate(["sinkstudy", "kvpress"])]
    check_yardstick(pd.DataFrame(same))
    with pytest.raises(StudyError, match="at 2048 tokens"):
        check_yardstick(pd.DataFrame([same[0], same[1] | {"perplexity": 10.1}]))


@torch.no_grad()
def test_a_continued_cache_predicts_what_one_pass_over_everything_does(model):
    ids = prompt_ids(120)
    task = {"ids": ids[0, :90].tolist(), "next": ids[0, 90:].tolist(), "asked": []}
    task["asked"] = [{"name": "0.1", "ids": task["next"][:5], "answer": 2}]
    under = Method("budget plan", 0.5, lambda: optimized(model, PLAN), lambda: optimized(model, PLAN))
    sdpa, planned = quality(model, [UNMODIFIED, under], [task])
    whole = model(ids, use_cache=False).logits
    with optimized(model, PLAN):
        changed = model(ids, use_cache=False).logits
    expected = compare(whole[:, 90:], changed[:, 90:], ids[:, 90:])
    assert (sdpa["kl"], sdpa["perplexity_ratio"]) == (0, 1)
    assert planned["kl"] == pytest.approx(expected.kl, rel=1e-4)
    assert planned["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
    logs = changed[0].log_softmax(-1)
    answer = [logs[at - 1, ids[0, at]].item() for at in (93, 94)]
    assert planned["log_prob_0.1"] == pytest.approx(np.mean(answer), abs=1e-5)
    # A window holds its last place for the token to come.
    of_a_token = 2 * 2 * 8 * 4  # keys and values, of 2 KV heads of 8 values of 4 bytes
    assert sdpa["kv_mb"] * 1e6 == 90 * 3 * of_a_token
    assert planned["kv_mb"] / sdpa["kv_mb"] == pytest.approx(kv_share(model, PLAN, 90), abs=1 / 90)


def test_bytes_of_a_view_are_those_of_all_that_it_keeps_alive(model):
    with torch.inference_mode():
        cache = model(prompt_ids(50), use_cache=True).past_key_values
    whole = held_bytes(cache)
    cache.layers[0].keys = cache.layers[0].keys[:, :, :1]
    assert held_bytes(cache) == whole


def test_plans_take_whole_kv_heads_up_to_their_share(model):
    plans = plans_of_levels(model, prompt_ids(700))
    kv_heads = {
        level: {(layer, head // 2) for layer, heads in plan.heads.items() for head in heads}
        for level, plan in plans.items()
    }
    assert {level: len(found) for level, found in kv_heads.items()} == {0.25: 2, 0.5: 3, 0.7: 4}
    assert all(plan.replaced == 2 * len(kv_heads[level]) for level, plan in plans.items())
    assert kv_heads[0.25] < kv_heads[0.5] < kv_heads[0.7]


def test_every_version_of_the_peers_is_stated():
    lines = (ROOT / "benchmarks/peers/requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["kvpress"] == "0.5.5"
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert f"torch=={pins['torch']}" in lock
