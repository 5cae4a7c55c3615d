"""The verdicts on statistics and simulators, and the sections of the findings that print them."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from made_up import NAN, frame
from test_findings import assert_no_nan, cells, made_up_tables, report, section

from sinkstudy.findings.verdicts import exceeds_control, follows_null, rejected, weakens
from sinkstudy.stats.scores import null_score


def curve(*rows: tuple[int, float]) -> pd.DataFrame:
    return frame("n_tokens mean_score null_score", *((n, score, float(null_score(n))) for n, score in rows))


def test_a_score_near_uniform_attentions_at_every_length_follows_the_null():
    verdict = follows_null(curve((24, 0.17), (1, 1.0), (2, 0.76)))
    assert verdict.holds is True
    for number in ("from 2 to 24 tokens", "0.760 to 0.170", "0.750 to 0.157", "0.0127 apart (at 24 tokens)"):
        assert number in verdict.reason


def test_one_length_far_from_uniform_attention_is_enough_not_to_follow_it():
    verdict = follows_null(curve((2, 0.75), (10, 0.6), (24, 0.157)))
    assert verdict.holds is False
    assert "at 10 tokens" in verdict.reason


def test_one_token_cannot_be_compared_with_the_null():
    assert follows_null(curve((1, 1.0))).holds is None


def control(*rows: tuple[int, float, float, float]) -> pd.DataFrame:
    return frame("n_tokens excess_difference excess_low excess_high", *rows)


@pytest.mark.parametrize(
    ("rows", "holds", "said"),
    [
        ([(2, 0.5, 0.4, 0.6), (24, 0.3, 0.2, 0.4)], True, "2, 24 tokens"),
        ([(2, 0.5, 0.4, 0.6), (24, 0.1, -0.1, 0.4)], False, "which may be nothing"),
        ([(2, 0.5, NAN, NAN)], None, "single prompt"),
        ([], None, "no prompt"),
    ],
)
def test_a_model_exceeds_its_control_where_every_interval_lies_above_0(rows, holds, said):
    verdict = exceeds_control(control(*rows))
    assert verdict.holds is holds
    assert said in verdict.reason
    assert "nan" not in verdict.reason


def weakening_row(**values: float) -> pd.Series:
    row = {"length": 8, "length_low": 5, "length_high": 12, "before": 0.8, "after": 0.3, "fall": 0.5, "fall_low": 0.2}
    row |= {"fall_high": 0.6, "excess_before": 0.1, "excess_after": -0.05, "last_length": 40}
    return pd.Series(row | values)


def test_a_correlation_weakens_where_the_interval_of_its_fall_lies_above_0():
    verdict = weakens(weakening_row())
    assert verdict.holds is True
    for said in ("8 tokens (95% interval 5 to 12)", "80.00% before", "30.00% from", "+10.00 and -5.00", "beyond 40"):
        assert said in verdict.reason


@pytest.mark.parametrize(
    ("values", "holds", "said"),
    [
        ({"fall_low": -0.1}, False, "no length is found"),
        ({"fall_low": NAN, "fall_high": NAN, "length_low": NAN, "length_high": NAN}, None, "no interval"),
        (dict.fromkeys(("length", "before", "after", "fall", "fall_low"), NAN), None, "too few"),
        ({"last_length": NAN, "length": NAN}, None, "no sinks at any length"),
    ],
    ids=["fall may be nothing", "one prompt", "one length", "no first-layer sinks"],
)
def test_a_correlation_is_not_said_to_weaken_otherwise(values, holds, said):
    verdict = weakens(weakening_row(**values))
    assert verdict.holds is holds
    assert said in verdict.reason
    assert "nan" not in verdict.reason


@pytest.mark.parametrize(
    ("error", "p_value", "holds"),
    [(0.4, 0.001, True), (0.4, 0.2, False), (0.001, 0.001, False)],
    ids=["beyond chance", "within chance", "too small to matter"],
)
def test_the_data_reject_a_simulator_that_errs_by_more_than_chance_and_by_enough(error, p_value, holds):
    verdict = rejected(pd.Series({"layer_error": error, "p_value": p_value, "cells": 8, "chance_error": 0.01}))
    assert verdict.holds is holds
    assert f"{100 * error:.2f} percentage points" in verdict.reason


def test_the_untrained_model_is_said_to_have_no_sinks_and_to_follow_the_null():
    tables = made_up_tables()
    null = tables.curves["null_score"]
    plain = tables.curves["model"] == "plain"
    tables = replace(tables, curves=tables.curves.assign(mean_score=tables.curves["mean_score"].where(~plain, null)))
    text = section(report(tables), "Against uniform attention")
    assert "**plain**: no head is a sink at any length at which uniform attention is none; its raw score falls" in text
    assert "**sinky**: at most 75.00% of heads are sinks (at 2 tokens); its raw score is not" in text
    assert "**sinky** against plain: at 2, 24 tokens the mean excess exceeds the control's" in text


def test_the_control_table_gives_differences_with_intervals_and_calls_missing_ones_undefined():
    two, long = cells(report(made_up_tables()), "Against uniform attention")
    assert two["sink % (control)"] == "75.00% (0.00%)"
    assert two["difference"] == "75.00% (50.00% to 100.00%)"
    assert two["difference of excess"] == "0.625 (0.562 to 0.688)"
    assert long["difference"] == "75.00% (undefined)"


def test_a_study_without_a_control_says_so():
    tables = made_up_tables()
    text = section(report(replace(tables, control=tables.control.iloc[:0])), "Against uniform attention")
    assert "has no control" in text
    assert_no_nan(text)


def test_layer_pairs_beyond_the_base_rate_are_tabulated_and_silent_layers_named():
    text = report(made_up_tables())
    (row,) = cells(text, "Layer by layer")
    assert (row["from layer"], row["to layer"], row["share in b"], row["base rate"]) == ("0", "1", "78.12%", "40.62%")
    body = section(text, "Layer by layer")
    assert "1 of 2 ordered pairs" in body
    assert "without a share: layer 1" in body
    assert "**plain**: no layer has a sink" in body


def test_heads_are_counted_by_how_they_depend_on_prompts_and_sets():
    sinky, plain = cells(report(made_up_tables()), "Consistent heads")
    assert sinky == {
        "model": "sinky",
        "tokens": "24",
        "prompts (sets)": "4 (2)",
        "heads": "4",
        "sinks in every prompt": "1",
        "in some prompts": "2",
        "in none": "1",
        "in some sets only": "1",
        "clearly set-dependent": "1",
    }
    assert plain["in none"] == "1"


def test_prompts_too_short_to_compare_heads_are_said_to_be():
    tables = made_up_tables()
    empty = {name: getattr(tables, name).iloc[:0] for name in ("persistence", "domains")}
    assert "No prompt is long enough" in section(report(replace(tables, **empty)), "Consistent heads")


def test_the_findings_say_which_simulator_the_data_reject():
    text = section(report(made_up_tables()), "Which simulator")
    assert "**sinky** rejects the formula simulator" in text
    assert "**sinky** does not reject the calibrated simulator" in text
    assert "40.62 percentage points" in text
    tables = made_up_tables()
    errors = tables.heldout_errors
    numbers = ["layer_error", "p_value"]
    other = errors.assign(**errors[numbers].iloc[::-1].reset_index(drop=True))
    text = section(report(replace(tables, heldout_errors=other)), "Which simulator")
    assert "**sinky** does not reject the formula simulator" in text
    assert "**sinky** rejects the calibrated simulator" in text


def test_a_preset_fitted_to_a_model_is_not_called_the_original_formula():
    tables = made_up_tables()
    fitted = pd.concat([tables.simulation, tables.simulation.assign(preset="grown", fitted_to="sinky")])
    text = section(report(replace(tables, simulation=fitted)), "Simulated matrices")
    assert "**simulated toy**: the formula of the original study" in text
    assert "**simulated grown**: fitted to the captures of sinky" in text


def test_too_few_prompts_to_hold_out_half_are_said_to_be():
    tables = made_up_tables()
    text = section(report(replace(tables, heldout_errors=tables.heldout_errors.iloc[:0])), "Which simulator")
    assert "too few or too short" in text


def test_published_figures_stand_apart_from_measured_ones_under_the_same_conditions():
    body = re.sub(r"\[\^\d+\]", "", section(report(made_up_tables()), "Published figures"))
    published, measured = body.split("Measured here")
    assert "| sink fraction | Big-1B | 71.48% | 0.9 | 2 | not given | one prompt | a study | as quoted |" in published
    assert "[a paper](https://x.org)" in published
    assert "Big-1B" not in measured
    assert "sinky" not in published
    assert "75.00%" in measured
    assert_no_nan(body)


def test_intervals_of_sink_fraction_and_excess_stand_beside_them():
    rows = cells(report(made_up_tables()), "Impact of sequence length")
    assert rows[0]["95% interval"] == "6.25% to 93.75%"
    assert rows[0]["95% interval of the excess"] == "-0.250 to 0.812"
    assert rows[1]["95% interval"] == "undefined"
