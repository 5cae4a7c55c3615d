"""The rules by which the findings conclude."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from made_up import NAN, frame, study

from sinkstudy.findings import rules
from sinkstudy.findings.verdicts import judge, verdicts_json
from sinkstudy.stats.pareto import pareto_front, timing_noise
from sinkstudy.stats.profile import long_prompt_table
from sinkstudy.stats.scores import null_score

QUESTIONS = [
    "first_layer",
    "has_sinks",
    "length",
    "mechanism",
    "predictor",
    "simulator",
    "skippable",
    "worth_replacing",
]


def without_nan(verdict: rules.Verdict, *said: str) -> bool | None:
    """What it holds, once its reason says all of this and is a sentence without `nan`."""
    assert verdict.reason.endswith(".")
    assert "nan" not in verdict.reason
    assert [word for word in said if word not in verdict.reason] == [], verdict.reason
    return verdict.holds


@pytest.mark.parametrize(
    ("rows", "holds", "said"),
    [
        ([("a", 24, 0, 0.95, 0.94), ("b", 50, 0, 0.85, 0.80), ("a", 24, 1, 0.2, 0.05)], True, ["1 of 2", "0 of them"]),
        ([("a", 24, 0, 0.95, 0.94), ("b", 50, 0, 0.92, 0.91), ("a", 24, 1, 0.95, 0.3)], True, ["2 of 2", "1 of them"]),
        ([("a", 24, 0, 0.95, 0.62), ("b", 24, 0, 0.1, 0.0), ("c", 24, 0, 0.1, 0.0)], False, ["none of 1", "0.62"]),
        ([("a", 23, 0, 1.0, 1.0), ("b", 24, 0, 0.1, 0.0)], False, ["none of 1", "0.00"]),
        ([("a", 23, 0, 1.0, 1.0)], None, ["24 tokens"]),
    ],
    ids=["half of the prompts", "beyond doubt", "too seldom", "short prompts do not count", "only short prompts"],
)
def test_a_model_has_sinks_where_a_head_is_one_in_half_of_the_long_prompts(rows, holds, said):
    scores = frame("prompt n_tokens head sink_score excess_score", *rows).assign(model="m", layer=0)
    scores["is_sink"] = scores["sink_score"] >= 0.9
    table = long_prompt_table([part for _, part in scores.groupby("prompt")], 24)
    assert without_nan(rules.has_sinks(table, 0.9), *said) is holds


@pytest.mark.parametrize(
    ("values", "holds", "said"),
    [
        ({"p_later_given_first": 0.74038}, True, ["74.04%", "60.00 to 90.00%", "40.00%", "p = 0.01"]),
        ({"p_later_given_first": 0.49, "p_later": 0.1, "ci_low": 0.3}, False, ["most later layers do not"]),
        ({"p_value": 0.05}, False, ["at random"]),
        ({"ci_low": 0.4}, False, ["at random"]),
        ({"p_later": 0.95, "p_value": 0.9}, False, ["at random"]),
        ({"ci_low": NAN, "ci_high": NAN}, None, ["interval undefined"]),
        ({"p_later_given_first": NAN, "p_later": NAN, "ci_low": NAN, "p_value": NAN}, None, ["single attention layer"]),
        ({"first_layer_sinks": 0, "p_later_given_first": NAN, "p_value": NAN}, False, ["no head", "while 40.00%"]),
        ({"first_layer_sinks": 0, "p_later_given_first": NAN, "p_later": 0.0}, None, ["nothing to predict"]),
        ({"first_layer_sinks": 0, "p_later_given_first": NAN, "p_later": NAN}, None, ["single attention layer"]),
    ],
)
def test_the_first_layer_predicts_where_sinks_follow_surely_and_more_than_the_base_rate(values, holds, said):
    row = {"first_layer_sinks": 4, "p_later_given_first": 0.8, "p_later": 0.4, "ci_low": 0.6, "ci_high": 0.9}
    verdict = rules.first_layer(pd.Series(row | {"p_value": 0.01} | values))
    assert without_nan(verdict, *said) is holds


def test_where_whole_prompts_have_no_first_layer_sinks_the_length_with_most_of_them_is_judged():
    correlation = pd.DataFrame(
        {
            "n_tokens": [NAN, 2, 4, 8],
            "first_layer_sinks": [0, 50, 7, 0],
            "p_later_given_first": [NAN, 0.825, 0.56, NAN],
            "p_later": [0.08, 0.818, 0.5, 0.3],
            "ci_low": [NAN, 0.78, 0.5, NAN],
            "ci_high": [NAN, 0.85, 0.64, NAN],
            "p_value": [NAN, 0.63, 0.3, NAN],
        }
    )
    verdict = rules.first_layer(rules.with_first_layer_sinks(correlation))
    assert verdict.holds is False
    assert "cut to 2 tokens, 82.50% of later layers" in verdict.reason
    assert rules.with_first_layer_sinks(correlation.assign(first_layer_sinks=[3, 50, 7, 0]))["p_later"] == 0.08
    assert rules.with_first_layer_sinks(correlation.assign(first_layer_sinks=0))["p_later"] == 0.08


@pytest.mark.parametrize(
    ("values", "holds", "said"),
    [
        ({}, True, ["8 tokens (95% interval 5 to 12)", "80.00% before", "30.00%", "+10.00 and -5.00", "beyond 40"]),
        ({"fall_low": -0.1}, False, ["no length is found"]),
        ({"excess_before": -0.1}, False, ["only as its base rate does"]),
        ({"fall_low": NAN, "fall_high": NAN, "length_low": NAN, "length_high": NAN}, None, ["no interval"]),
        (dict.fromkeys(("length", "before", "after", "fall", "fall_low"), NAN), None, ["too few"]),
        ({"last_length": NAN, "length": NAN}, None, ["no sinks at any length"]),
    ],
    ids=["falls", "may be nothing", "base rate falls", "one prompt", "one length", "no first-layer sinks"],
)
def test_a_correlation_weakens_where_it_surely_falls_and_by_more_than_its_base_rate(values, holds, said):
    row = {"length": 8, "length_low": 5, "length_high": 12, "before": 0.8, "after": 0.3, "fall": 0.5, "fall_low": 0.2}
    row |= {"fall_high": 0.6, "excess_before": 0.1, "excess_after": -0.05, "last_length": 40}
    assert without_nan(rules.length(pd.Series(row | values)), *said) is holds


@pytest.mark.parametrize(
    ("prompts", "holds", "said"),
    [
        ({"a": {2: (0.77, 0.06), 100: (0.10, 0.05)}}, False, ["0.770 to 0.100", "0.750 to 0.052", "0.060 to 0.050"]),
        ({"a": {2: (0.9, 0.9), 24: (0.5, 0.7)}}, True, ["lose"]),
        ({"a": {2: (0.9, 0.3), 24: (0.5, 0.5)}}, True, ["gain"]),
        ({"a": {2: (0.8, 0.2), 24: (0.3, 0.2)}, "b": {2: (1.0, 1.0), 3: (1.0, 1.0)}}, False, ["excess from 0.200 to"]),
        ({"a": {2: (1.0, 0.5), 23: (1.0, 0.1)}}, None, ["only 23"]),
        ({"a": {1: (1.0, NAN)}}, None, ["only 1 "]),
    ],
    ids=["null explains it", "falls", "rises", "only prompts that reach the longest", "short", "one token"],
)
def test_length_has_an_effect_where_the_excess_changes(prompts, holds, said):
    rows = [(p, n, float(null_score(n)), *values) for p, lengths in prompts.items() for n, values in lengths.items()]
    verdict = rules.length_effect(frame("prompt n_tokens null_score mean_score mean_excess", *rows))
    assert without_nan(verdict, *said) is holds


@pytest.mark.parametrize(
    ("error", "p_value", "rejected"),
    [(0.4, 0.001, True), (0.4, 0.2, False), (0.001, 0.001, False)],
    ids=["beyond chance", "within chance", "too small to matter"],
)
def test_the_data_reject_a_simulator_that_errs_by_more_than_chance_and_by_enough(error, p_value, rejected):
    row = ("formula", 8, error, 0.01, p_value)
    errors = frame("simulator cells layer_error chance_error p_value", ("calibrated", 8, 0.0, 0.0, 1.0), row)
    verdict = rules.simulator(errors)
    assert without_nan(verdict, f"{100 * error:.2f} percentage points") is not rejected
    assert rules.rejected(errors.iloc[1]) is rejected
    assert without_nan(rules.simulator(errors.iloc[:1]), "too few") is None
    assert without_nan(rules.simulator(pd.DataFrame()), "too few") is None


TIMED = "strategy policy heads_replaced kl top1_agreement speedup_vs_sdpa speedup_low ceiling"
SDPA, EAGER = ("sdpa", "none", 0, 0.0, 1.0, 1.0, 1.0, 1.0), ("eager", "none", 0, 0.0, 1.0, 9.0, 9.0, 1.0)


def timed(*rows: tuple, n: int = 128, phase: str = "prefill", noise: float = 0.0) -> pd.DataFrame:
    """A cell of a benchmark table; `noise`: spread of the rounds over their median."""
    where = {"phase": phase, "n_tokens": n, "batch": 1, "head_fraction": 0.25, "median_s": 0.5, "iqr_s": 0.5 * noise}
    return frame(TIMED, SDPA, EAGER, *rows).assign(**where)


def way(name: str, speed: float, low: float | None = None, ceiling: float = 3.0, kl: float = 0.0, top1: float = 1.0):
    return ("first_value", name, 5, kl, top1, speed, speed if low is None else low, ceiling)


AGAIN = ("sdpa", "again", 0, 0.0, 1.0, 1.02, 0.9, 1.0)  # the same computation timed twice; 1 / 0.9 is 1.11


@pytest.mark.parametrize(
    ("rows", "noise", "holds", "said"),
    [
        ([way("x", 1.25), way("kl", 2.0, kl=0.02), way("top", 3.0, top1=0.97)], 0, True, ["policy x", "1.25", "of 1 "]),
        ([way("limit", 1.25, kl=0.01, top1=0.98)], 0, True, ["policy limit, prefill at 128 tokens, 5 heads"]),
        ([way("x", 1.01)], 0, False, ["1.01 times", "not worth having"]),
        ([way("lucky", 60.0, low=0.9), way("x", 1.01)], 0, False, ["of 2 ", "1.01 times"]),
        ([way("x", 1.12, low=1.10)], 0.15, False, ["factor of 1.15", "noise"]),
        ([way("x", 1.12, low=1.10), AGAIN], 0.0, False, ["factor of 1.11", "noise"]),
        ([way("x", 1.14, low=1.12), AGAIN], 0.5, True, ["factor of 1.11"]),
        ([way("x", 1.12, low=1.10, ceiling=1.01)], 0, False, ["ceiling 1.01", "noise"]),
        ([way("kl", 2.0, kl=1.7, top1=0.4)], 0, False, ["none of 1"]),
        ([], 0, None, ["no policy found a head"]),
    ],
)
def test_replacing_is_worth_it_where_a_harmless_way_is_faster_than_sdpa_differs_from_itself(rows, noise, holds, said):
    table = timed(*rows, noise=noise)
    assert without_nan(rules.worth_replacing(table), *said) is holds
    if "noise" in said:
        assert rules.worth_replacing(table).reason.endswith("this is noise.")


def test_a_gain_in_a_quiet_cell_is_found_beside_a_larger_one_in_a_noisy_cell():
    noisy, quiet = timed(way("noisy", 1.6), noise=0.8), timed(way("quiet", 1.2), n=512, noise=0.05)
    table = pd.concat([noisy, quiet], ignore_index=True)
    assert without_nan(rules.worth_replacing(table), "of 2 ", "policy quiet, prefill at 512") is True


def test_nothing_timed_and_a_model_that_sdpa_cannot_run_are_no_verdict_on_speed():
    assert without_nan(rules.worth_replacing(pd.DataFrame()), "was timed") is None
    assert without_nan(rules.skippable(pd.DataFrame()), "was timed") is None
    assert rules.worth_by_length(pd.DataFrame()) == []
    slow = timed(way("x", NAN)).query("strategy != 'sdpa'")
    assert without_nan(rules.worth_replacing(slow), "SDPA does not run") is None


def test_each_phase_and_length_is_judged_by_its_own_noise_at_the_smallest_batch():
    table = pd.concat(
        [
            timed(way("x", 1.2), noise=0.3),
            timed(way("x", 1.2), noise=0.1, phase="decode"),
            timed(n=512),
            timed(way("x", 9.0)).assign(batch=8),
        ],
        ignore_index=True,
    )
    holds = {where: verdict.holds for where, verdict in rules.worth_by_length(table)}
    assert holds == {"prefill at 128 tokens": False, "decoding at 128 tokens": True, "prefill at 512 tokens": None}


def test_the_upper_end_of_a_second_timing_counts_where_it_is_given():
    table = timed(way("x", 1.2), AGAIN).assign(speedup_high=[1.0, 9.0, 1.3, 1.25])
    assert timing_noise(table).tolist() == [1.25] * 4


def test_heads_can_be_skipped_where_predictions_stay_whatever_the_speed():
    many = ("first_value", "many", 9, 0.001, 0.99, 0.5, 0.5, 2.0)
    assert without_nan(rules.skippable(timed(way("few", 3.0), many)), "9 heads (25.00%)", "policy many") is True
    verdict = rules.skippable(timed(way("bad", 3.0, kl=1.7), way("mild", 3.0, kl=0.3, top1=0.7)))
    assert without_nan(verdict, "policy mild", "0.3", "0.700") is False
    assert without_nan(rules.skippable(timed()), "no policy found a head") is None


@pytest.mark.parametrize(("perplexity", "holds"), [(23.4, False), (1000.0, False), (2e5, True), (float("inf"), True)])
def test_a_perplexity_beyond_belief_says_that_a_model_is_misloaded(perplexity, holds):
    rows = [("held-out", 512, "none", perplexity), ("held-out", 24, "none", 5e4), ("code", 2048, "none", 5e4)]
    quality = frame("set n_tokens policy perplexity", *rows, ("held-out", 2048, "consistent", 5e4))
    assert rules.misloaded(quality).holds is holds
    for unknown in (pd.DataFrame(), quality.drop(columns="perplexity"), quality.assign(perplexity=NAN)):
        assert rules.misloaded(unknown).holds is None


def test_the_pareto_front_is_what_nothing_else_beats():
    rows = [("sdpa", 1.0, 0.0), ("mild", 1.1, 0.001), ("slower and worse", 1.05, 0.01), ("as fast, worse", 1.1, 0.002)]
    table = frame("name speedup_vs_sdpa kl", *rows, ("fast", 2.0, 0.1), ("no quality", 3.0, NAN))
    assert pareto_front(table)["name"].tolist() == ["sdpa", "mild", "fast"]


def test_verdicts_for_programs_are_sorted_and_name_the_cells_that_their_numbers_are_from():
    tables = study()
    listed = json.loads(verdicts_json(tables))
    assert [(one["model"], one["question"]) for one in listed] == [
        (m, q) for m in ("plain", "sinky") for q in QUESTIONS
    ]
    assert all(list(one) == ["model", "question", "holds", "reason", "evidence"] for one in listed)
    holds = {one["question"]: one["holds"] for one in listed if one["model"] == "sinky"}
    true = ("first_layer", "has_sinks", "length", "mechanism", "skippable", "worth_replacing")
    assert holds == dict.fromkeys(true, True) | {"simulator": False, "predictor": None}
    checked = 0
    for one in listed:
        for name, number in one["evidence"].items():
            folder, table, file = number["table"].split("/")
            assert (folder, file) == ("results", f"{one['model']}.csv")
            cells = getattr(tables, "long_prompts" if table == "scores" else table)
            if name in cells:
                checked += 1
                values = cells.loc[cells["model"] == one["model"], name]
                assert values.isna().any() if number["value"] is None else number["value"] in values.tolist(), name
    assert checked > 30


def test_verdicts_for_programs_do_not_depend_on_the_order_of_models():
    tables = study()
    backwards = replace(tables, heads=tables.heads.iloc[::-1], benchmark=tables.benchmark.iloc[::-1])
    assert verdicts_json(backwards) == verdicts_json(tables)


def test_what_is_not_measured_and_what_a_control_is_not_asked_is_null_with_a_reason():
    judged = judge(study(), "plain")
    assert without_nan(judged["predictor"], "not measured") is None
    assert without_nan(judged["mechanism"], "no sinks to explain") is None
    for question in ("skippable", "worth_replacing"):
        assert without_nan(judged[question], "control") is None
        assert judged[question].numbers == {}
