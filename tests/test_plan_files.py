"""Plan files: limits of length, and the head patterns of DuoAttention."""

import json

import numpy as np
import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.attention.duo import load_duo_pattern, save_duo_pattern

WINDOW = {"strategy": "sink_window", "sink_tokens": 2, "window": 5}
GROUPS = {0: [2, 3], 2: [0, 1, 2, 3]}  # whole groups: two query heads read each KV head


@pytest.mark.parametrize("depth", ["projections", "attention"])
@pytest.mark.parametrize(("n", "runs"), [(8, False), (9, True), (20, True), (21, False)])
@torch.no_grad()
def test_a_plan_runs_between_its_limits_of_length_and_nowhere_else(depth, n, runs):
    model, ids = tiny_model("llama"), prompt_ids(30)
    plain = model(ids).logits
    with optimized(model, Plan(heads=GROUPS, min_tokens=9, max_tokens=20), depth):
        prefill = model(ids[:, :n], use_cache=True)
        decoded = model(ids[:, n : n + 1], past_key_values=prefill.past_key_values).logits
    for found, expected in ((prefill.logits, plain[:, :n]), (decoded, plain[:, n : n + 1])):
        assert torch.allclose(found, expected, atol=1e-5) is not runs


def test_plan_files_from_before_min_tokens_and_windows_load(tmp_path):
    plan = Plan(heads=GROUPS, **WINDOW)
    plan.save(tmp_path / "new.json")
    old = json.loads((tmp_path / "new.json").read_text())
    assert old.pop("min_tokens", "absent") is None
    assert old.pop("windows", "absent") is None
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert Plan.load(tmp_path / "old.json") == Plan.load(tmp_path / "new.json") == plan


def test_a_plan_file_keeps_windows_of_their_own(tmp_path):
    plan = Plan(heads=GROUPS, windows={2: {10: 4, 3: 9, 2: 9}, 0: {2: 7}}, **WINDOW)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert [loaded.window_of(layer, head) for layer in (0, 2) for head in GROUPS[layer]] == [7, 5, 5, 5, 9, 9]
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("limits", "named"),
    [({"min_tokens": 0}, "min_tokens is 0"), ({"min_tokens": 5, "max_tokens": 4}, "applies to no prompt")],
)
def test_limits_that_cannot_be_are_refused(limits, named, refuses):
    with refuses(named):
        Plan(**limits)


def test_a_duo_pattern_holds_the_heads_of_the_plan(tmp_path):
    config, path = tiny_model("llama").config, tmp_path / "full_attention_heads.tsv"
    plan = Plan(heads=GROUPS, **WINDOW)
    save_duo_pattern(plan, config, path)
    # As DuoAttention reads it: rows are layers, columns KV heads, 1 keeps full attention.
    assert np.loadtxt(path, delimiter="\t").tolist() == [[1, 0], [1, 1], [0, 0]]
    loaded = load_duo_pattern(path, config, sink_tokens=2, window=5)
    assert (loaded.heads, loaded.strategy, loaded.window) == (plan.heads, plan.strategy, plan.window)


def test_a_learned_duo_pattern_is_cut_at_a_gate_value(tmp_path):
    config, path = tiny_model("llama").config, tmp_path / "full_attention_heads.tsv"
    np.savetxt(path, [[0.9, 0.2], [0.5, 0.7], [0.4, 0.0]], delimiter="\t")
    assert load_duo_pattern(path, config, sink_tokens=64, window=256).heads == GROUPS
    assert load_duo_pattern(path, config, sink_tokens=64, window=256, keep_from=0.3).heads == {0: [2, 3], 2: [2, 3]}


def test_what_a_duo_pattern_cannot_say_is_refused(tmp_path, refuses):
    config, path = tiny_model("llama").config, tmp_path / "pattern.tsv"
    with refuses("layer 1", "KV head 0"):
        save_duo_pattern(Plan(heads={1: [0]}, **WINDOW), config, path)
    with refuses("sink_window"):
        save_duo_pattern(Plan(heads=GROUPS), config, path)
    path.write_text("1\t0\n")
    with refuses("pattern.tsv", "3 layers of 2"):
        load_duo_pattern(path, config, sink_tokens=2, window=5)
    with refuses("absent.tsv"):
        load_duo_pattern(tmp_path / "absent.tsv", config, sink_tokens=2, window=5)
