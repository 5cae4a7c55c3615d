"""The rules by which the findings conclude."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from made_up import NAN, frame, study, with_tables

from sinkstudy.evaluation.timing import Rounds
from sinkstudy.findings import predictor_rules, replacing, rules
from sinkstudy.findings.verdicts import judge, verdicts_json
from sinkstudy.stats.profile import long_prompt_table
from sinkstudy.stats.scores import null_score
from sinkstudy.stats.speedups import pareto_front, speedups

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
        (
            [("a", 24, 0, 0.95, 0.62), ("b", 24, 0, 0.1, 0.0), ("c", 24, 0, 0.1, 0.0)],
            False,
            ["none of 1", "0.62"],
        ),
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


FOLLOWED = "n_tokens first_layer_sinks p_later_given_first p_later ci_low ci_high p_value"
SINKLESS = (24, 0, NAN, 0.12, NAN, NAN, NAN)


@pytest.mark.parametrize(
    ("rows", "holds", "said"),
    [
        ([(2, 9, 0.74038, 0.4, 0.6, 0.9, 0.01)], True, ["(2 tokens), 74.04%", "60.00 to 90.00%", "40.00%", "p = 0.01"]),
        (
            [(2, 9, 0.8, 0.4, 0.6, 0.9, 0.01), (8, 3, 0.5, 0.4, 0.3, 0.6, 0.2)],
            True,
            ["(2 to 8", "at 2", "2 lengths 0.01"],
        ),
        ([(2, 9, 0.8, 0.4, 0.6, 0.9, 0.03), (8, 3, 0.5, 0.4, 0.3, 0.6, 0.2)], False, ["at random"]),
        ([(2, 9, 0.8, 0.4, 0.4, 0.9, 0.01)], False, ["at random"]),
        ([(2, 9, 0.49, 0.1, 0.3, 0.6, 0.01)], False, ["most later layers do not"]),
        ([(2, 9, 0.8, 0.4, NAN, NAN, 0.01)], None, ["interval undefined", "fewer than two prompts"]),
        ([(2, 9, 0.8, 0.7, 0.7, 0.9, 0.6), SINKLESS], False, ["at random", "at 24 tokens and more no head", "12.00%"]),
        ([(2, 9, 0.8, 0.4, 0.6, 0.9, 0.01), SINKLESS], False, ["80.00%", "there it predicts nothing"]),
        ([(2, 9, 0.8, 0.4, 0.6, 0.9, 0.01), (*SINKLESS[:3], 0.009, *SINKLESS[4:])], True, ["80.00%"]),
        ([SINKLESS], False, ["at 24 tokens and more no head"]),
        ([(24, 0, NAN, 0.0, NAN, NAN, NAN)], None, ["nothing to predict"]),
        ([(2, 0, *(NAN,) * 5)], None, ["single attention layer"]),
        ([], None, ["no prompt is long enough"]),
    ],
)
def test_the_first_layer_is_judged_at_every_length_with_sinks_and_without(rows, holds, said):
    assert without_nan(predictor_rules.first_layer(frame(FOLLOWED, *rows)), *said) is holds


@pytest.mark.parametrize(
    ("values", "holds", "said"),
    [
        ({}, True, ["8 tokens (95% interval 5 to 12)", "80.00% before", "30.00%", "70.00% to 35.00%", "beyond 40"]),
        ({"fall_low": -0.1}, False, ["no length is found"]),
        (
            {"excess_fall_low": -0.1},
            False,
            ["what falls is the base rate", "beyond it is -15.00 points, 95% interval -20.00 to +10.00"],
        ),
        ({"fall_low": NAN, "fall_high": NAN, "length_low": NAN, "length_high": NAN}, None, ["no interval"]),
        (dict.fromkeys(("length", "before", "after", "fall", "fall_low"), NAN), None, ["too few"]),
        ({"last_length": NAN, "length": NAN}, None, ["no sinks at any length"]),
    ],
    ids=["falls", "may be nothing", "base rate falls", "one prompt", "one length", "no first-layer sinks"],
)
def test_a_correlation_weakens_where_it_surely_falls_and_by_more_than_its_base_rate(values, holds, said):
    row = {"length": 8, "length_low": 5, "length_high": 12, "before": 0.8, "after": 0.3, "fall": 0.5, "fall_low": 0.2}
    row |= {"fall_high": 0.6, "excess_before": 0.1, "excess_after": -0.05, "excess_fall": 0.15, "excess_fall_low": 0.1}
    row |= {"excess_fall_high": 0.2, "last_length": 40}
    assert without_nan(predictor_rules.length(pd.Series(row | values)), *said) is holds


TOLD = "predictor auc gain gain_low behind behind_low"
BASE_RATE, ALL = ("layer_base_rate", 0.7, 0.0, 0.0, 0.2, 0.1), ("all", 0.9, 0.2, 0.1, 0.0, 0.0)
FIRST = ("first_layer", 0.5, -0.2, -0.3, 0.4, 0.3)


@pytest.mark.parametrize(
    ("rows", "holds", "said"),
    [
        (
            [("record", 0.88, 0.18, 0.1, 0.02, -0.01), ALL],
            True,
            ["use the head's own record", "0.880", "0.020 (-0.010"],
        ),
        ([("record", 0.88, 0.18, 0.1, 0.02, 0.015), ALL], True, ["use all of these together", "first layer has 0.5"]),
        ([("record", 0.895, 0.195, 0.1, 0.005, 0.004), ALL], True, ["use the head's own record"]),
        ([("record", 0.88, 0.18, 0.1, 0.02, -0.0001), ALL], True, ["0.020 (0.000"]),
        ([("record", 0.705, 0.005, 0.004, 0.0, 0.0)], False, ["no candidate", "0.700", "the best of the other 2"]),
        ([("record", 0.8, 0.1, -0.01, 0.0, 0.0)], False, ["no candidate"]),
        ([("record", 0.8, 0.1, NAN, 0.0, NAN)], None, ["no interval"]),
    ],
    ids=["as good", "surely worse", "hardly worse", "a tiny end", "hardly better", "maybe better", "one prompt"],
)
def test_the_simplest_predictor_that_gains_and_that_none_surely_beats_is_named(rows, holds, said):
    table = frame(TOLD, *rows[::-1], FIRST, BASE_RATE).assign(n_tokens=NAN)
    other = ["auc_low", "auc_high", "gain_high", "behind_high", "log_loss", "brier", "precision", "recall"]
    table = table.assign(**dict.fromkeys(other, 0.5))
    table.loc[table["predictor"].isin(["layer_base_rate", "first_layer"]) & (holds is None), "gain_low"] = NAN
    assert without_nan(predictor_rules.predictor(table, pd.DataFrame()), *said) is holds


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "too few"),
        ([(2, "every head is a sink"), (24, "no head is a sink")], "every head is a sink in later layers; no"),
    ],
)
def test_a_predictor_is_not_judged_where_there_is_nothing_to_tell(rows, said):
    table = frame("n_tokens undefined", *rows).assign(predictor="record")
    assert without_nan(predictor_rules.predictor(table, pd.DataFrame()), said) is None


def test_a_record_is_long_enough_from_where_it_stays_near_that_of_all_prompts_at_every_length():
    rows = [(2, 1, 0.895), (2, 2, 0.88), (2, 4, 0.895), (2, 8, 0.9), (24, 1, 0.99), (24, 4, 0.99)]
    assert predictor_rules.enough_prompts(frame("n_tokens training_prompts auc", *rows)) == 4


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


TIMED = "strategy policy heads_replaced kl top1_agreement speedup_vs_sdpa speedup_low speedup_high ceiling"
SDPA, EAGER = ("sdpa", "none", 0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0), ("eager", "none", 0, 0.0, 1.0, 9.0, 9.0, 9.0, 1.0)


def timed(
    *rows: tuple, n: int = 128, phase: str = "prefill", again: float = 1.01, freedom: float = 1e6
) -> pd.DataFrame:
    """A cell of a benchmark table; `again`: the upper end of SDPA's speedup over itself."""
    twice = ("sdpa", "again", 0, 0.0, 1.0, 1.0, 1 / again, again, 1.0)
    where = {"phase": phase, "n_tokens": n, "batch": 1, "median_s": 0.5, "degrees_of_freedom": freedom}
    return frame(TIMED, SDPA, EAGER, twice, *rows).assign(**where)


def way(name: str, speed: float, factor: float = 1.01, ceiling: float = 3.0, kl: float = 0.0, top1: float = 1.0):
    """`factor`: the 95% interval reaches from the speed over this to the speed times this."""
    return ("first_value", name, 5, kl, top1, speed, speed / factor, speed * factor, ceiling)


@pytest.mark.parametrize(
    ("rows", "again", "holds", "said"),
    [
        ([way("x", 1.25), way("kl", 2, kl=0.02), way("top", 3, top1=0.97)], 1.01, True, ["1 of 1", "policy x", "1.25"]),
        ([way("limit", 1.25, kl=0.01, top1=0.98)], 1.01, True, ["policy limit, prefill at 128 tokens, 5 heads"]),
        ([way("x", 1.25), way("y", 1.15), way("lucky", 2, 3)], 1.01, True, ["2 of 3", "fastest of them", "policy x"]),
        ([way("x", 1.01)], 1.01, False, ["1.01 times", "not worth having"]),
        ([way("lucky", 60.0, factor=99), way("x", 1.01)], 1.01, False, ["fastest of 2 ", "lucky", "noise"]),
        ([way("x", 1.12)], 1.15, False, ["up to 1.15", "noise"]),
        ([way("x", 1.12, factor=1.1), way("y", 1.0)], 1.01, False, ["95% interval 1.02 to 1.23", "noise"]),
        ([way("x", 1.12, ceiling=1.01)], 1.01, False, ["more than its ceiling allows"]),
        ([way("x", 1.12, ceiling=1.05)], 1.01, True, ["ceiling 1.05"]),
        ([way("kl", 2.0, kl=1.7, top1=0.4)], 1.01, False, ["no timed way", "(of 1)"]),
        ([], 1.01, None, ["no policy found a head"]),
    ],
)
def test_replacing_is_worth_it_where_a_harmless_way_is_surely_faster_than_sdpa_timed_twice(rows, again, holds, said):
    assert without_nan(replacing.worth_replacing(timed(*rows, again=again)), *said) is holds


def test_the_lower_end_is_corrected_for_the_number_of_ways_and_for_few_rounds():
    """An interval that just excludes 1.02 once does not so among many, nor with Student's t for one round more."""
    one = way("x", 1.10, factor=1.07)
    assert replacing.worth_replacing(timed(one)).holds is True
    many = timed(one, *(way(f"way {i}", 1.0 + i / 1e4) for i in range(9)))
    assert replacing.worth_replacing(many).holds is False
    # One-sided for ten: the normal quantile of 0.995 over that of 0.975.
    low = 1.10 / 1.07 ** (2.5758293 / 1.9599640)
    assert replacing.worth_replacing(many).numbers["sure_speedup"] == pytest.approx(low)
    same = timed(one, *[way("another name", 1.10, factor=1.07)] * 9)
    assert replacing.worth_replacing(same).numbers["ways"] == 1
    assert replacing.worth_replacing(timed(one, freedom=3)).numbers["sure_speedup"] == pytest.approx(
        1.10 / 1.07 ** (2.3533634 / 3.1824463)
    )


def test_a_gain_in_a_quiet_cell_is_found_beside_a_larger_one_in_a_noisy_cell():
    table = pd.concat([timed(way("noisy", 1.6), again=1.8), timed(way("quiet", 1.2), n=512)], ignore_index=True)
    assert without_nan(replacing.worth_replacing(table), "1 of 2 ", "policy quiet, prefill at 512") is True


def test_nothing_timed_and_a_model_that_sdpa_cannot_run_are_no_verdict_on_speed():
    assert without_nan(replacing.worth_replacing(pd.DataFrame()), "was timed") is None
    assert without_nan(replacing.skippable(pd.DataFrame()), "no policy found a head") is None
    assert replacing.worth_by_length(pd.DataFrame()) == []
    slow = timed(way("x", NAN)).query("strategy != 'sdpa'")
    assert without_nan(replacing.worth_replacing(slow), "SDPA does not run") is None
    once = timed(way("x", 2.0)).query("policy != 'again'")
    assert without_nan(replacing.worth_replacing(once), "not timed twice") is None


def test_each_phase_and_length_is_judged_by_its_own_noise_at_the_smallest_batch_corrected_for_all():
    cells = [
        timed(way("x", 1.2), again=1.3),
        timed(way("x", 1.2), phase="decode"),
        timed(n=512),
        timed(way("x", 9.0)).assign(batch=8),
    ]
    judged = replacing.worth_by_length(pd.concat(cells, ignore_index=True))
    holds = {where: verdict.holds for where, verdict in judged}
    assert holds == {"prefill at 128 tokens": False, "decoding at 128 tokens": True, "prefill at 512 tokens": None}
    assert all("corrected for 2 comparisons" in verdict.reason for _, verdict in judged[:2])


def simulated(
    rng: np.random.Generator, gain: float, spread: float, drift: float, most: float, cells: int
) -> pd.DataFrame:
    """A benchmark table of a dozen ways per cell, the first of which is `gain` times as fast as SDPA.

    Times are log-normal: ratios of two vary by `spread`, on a machine whose speed walks by `drift` from sample to
    sample. Rounds end as in the default study, and at latest after `most`.
    """
    parts, rounds = [], Rounds(4, precision=0.02, seconds=most)
    for n in range(cells):
        times, speed = np.empty((0, 14)), 0.0
        while not rounds.are_over(times, len(times)):
            order, walk = rng.permutation(14), speed + np.cumsum(drift * rng.standard_normal(14))
            speed, row = walk[-1], spread / math.sqrt(2) * rng.standard_normal(14)
            row[order] += walk
            row[2] -= math.log(gain)
            times = np.vstack([times, np.exp(row)])
        found = speedups(times, 0)
        low, high = found.ratio / found.factor, found.ratio * found.factor
        ways = [way(f"way {i}", found.ratio[i]) for i in range(2, 14)]
        table = frame(TIMED, SDPA, ("sdpa", "again", *SDPA[2:]), *ways).assign(n_tokens=n, phase="prefill", batch=1)
        measured = {"speedup_vs_sdpa": found.ratio, "speedup_low": low, "speedup_high": high}
        parts.append(table.assign(**measured, median_s=np.median(times, 0), degrees_of_freedom=found.freedom))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("most", "cells"), [(400, 1), (5, 2)], ids=["until precise", "a few rounds of many cells"])
def test_noise_of_a_disturbed_machine_claims_nothing_in_95_of_100_tables(most, cells):
    rng = np.random.default_rng(0)
    tables = [simulated(rng, 1.0, spread=0.08, drift=0.02, most=most, cells=cells) for _ in range(200)]
    assert np.mean([replacing.worth_replacing(table).holds for table in tables]) <= 0.05
    claimed = [any(verdict.holds for _, verdict in replacing.worth_by_length(table)) for table in tables]
    assert np.mean(claimed) <= 0.05


def test_a_true_gain_of_a_tenth_is_claimed_in_95_of_100_tables():
    rng = np.random.default_rng(0)
    tables = [simulated(rng, 1.1, spread=0.03, drift=0.005, most=400, cells=1) for _ in range(200)]
    verdicts = [replacing.worth_replacing(table) for table in tables]
    assert np.mean([verdict.holds and "policy way 2," in verdict.reason for verdict in verdicts]) >= 0.95


SKIPPED = "chosen_by kl kl_low kl_high kl_beyond_low top1_agreement perplexity_ratio"


@pytest.mark.parametrize(
    ("policy", "random", "no_sinks", "holds", "said"),
    [
        (
            {},
            {},
            {},
            True,
            ["5 heads (first_value with policy a, texts of 256", "KL of 1e-05", "KL of 0.02", "x 1.0300"],
        ),
        ({"kl_high": 0.02}, {}, {}, False, ["not even the mildest policy"]),
        ({"top1_agreement": 0.9}, {}, {}, False, ["not even the mildest policy"]),
        ({}, {"kl_beyond_low": -1e-6}, {}, False, ["not what makes them cheap"]),
        ({}, {}, {"kl_beyond_low": 0.0}, False, ["not what makes them cheap"]),
    ],
)
def test_sinks_can_be_skipped_where_they_are_harmless_and_other_heads_of_their_layers_cost_more(
    policy, random, no_sinks, holds, said
):
    rows = [("policy", 1e-5, 9e-6, 2e-5, 0.0, 1.0, 1.0001), ("random", 0.02, 0.01, 0.03, 0.01, 0.9, 1.01)]
    rows.append(("no_sinks", 0.05, 0.04, 0.06, 0.03, 0.8, 1.03))
    table = frame(SKIPPED, *rows).set_index("chosen_by")
    for name, values in {"policy": policy, "random": random, "no_sinks": no_sinks}.items():
        table.loc[name, list(values)] = list(values.values())
    table = table.reset_index().assign(policy="a", n_tokens=256, strategy="first_value", heads_replaced=5.0)
    fewer = table.assign(policy="fewer", heads_replaced=2.0, kl_high=1e-9 if holds else 1.0)
    assert without_nan(replacing.skippable(pd.concat([fewer, table], ignore_index=True)), *said) is holds


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
    true = ("first_layer", "has_sinks", "length", "mechanism", "predictor", "skippable", "worth_replacing")
    assert holds == dict.fromkeys(true, True) | {"simulator": False}
    checked = 0
    for one in listed:
        for name, number in one["evidence"].items():
            folder, table, file = number["table"].split("/")
            assert (folder, file) == ("results", f"{one['model']}.csv")
            cells = tables["long_prompts" if table == "scores" else table]
            if name in cells:
                checked += 1
                values = cells.loc[cells["model"] == one["model"], name]
                assert values.isna().any() if number["value"] is None else number["value"] in values.tolist(), name
    assert checked > 30


def test_verdicts_for_programs_do_not_depend_on_the_order_of_models():
    tables = study()
    backwards = with_tables(tables, heads=tables["heads"].iloc[::-1], benchmark=tables["benchmark"].iloc[::-1])
    assert verdicts_json(backwards) == verdicts_json(tables)


def test_what_is_not_measured_and_what_a_control_is_not_asked_is_null_with_a_reason():
    judged = judge(study(), "plain")
    assert without_nan(judged["predictor"], "no head is a sink") is None
    assert without_nan(judged["mechanism"], "no sinks to explain") is None
    for question in ("skippable", "worth_replacing"):
        assert without_nan(judged[question], "control") is None
        assert judged[question].numbers == {}
