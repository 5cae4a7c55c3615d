import re
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
from browser import opened
from made_up import frame, statistics_tables
from PIL import Image

from sinkstudy.findings import Tables, markdown
from sinkstudy.findings.html import html
from sinkstudy.findings.text import evidence, figure, number_footnotes, percent, table
from sinkstudy.findings.verdicts import (
    MIN_TOKENS,
    attention_share,
    first_layer_hypothesis,
    has_sinks,
    length_effect,
    original_proposal,
    pareto_front,
    worth_having,
    worth_optimizing,
)
from sinkstudy.stats.profile import long_prompt_table, position_table
from sinkstudy.stats.scores import null_score

NAN = float("nan")


def score_rows(*rows: tuple) -> pd.DataFrame:
    """Rows (prompt, n_tokens, layer, head, sink_score, excess_score, is_sink)."""
    return frame("prompt n_tokens layer head sink_score excess_score is_sink", *rows)


def long_prompts(*rows: tuple) -> pd.DataFrame:
    """What `has_sinks` judges by, from rows as above; each prompt comes in a part of its own."""
    scores = score_rows(*rows).assign(model="m")
    return long_prompt_table([part for _, part in scores.groupby("prompt")], MIN_TOKENS)


def test_has_sinks_where_a_head_is_one_in_half_of_the_long_prompts():
    verdict = has_sinks(
        long_prompts(
            ("a", 24, 0, 0, 0.95, 0.94, True),
            ("b", 50, 0, 0, 0.85, 0.80, False),
            ("a", 24, 0, 1, 0.20, 0.05, False),
            ("b", 50, 0, 1, 0.20, 0.15, False),
        ),
        0.9,
    )
    assert verdict.holds is True
    assert "1 of 2 heads" in verdict.reason
    assert "0 of them in every one" in verdict.reason


def test_has_sinks_counts_the_heads_that_are_sinks_beyond_doubt_in_every_prompt():
    verdict = has_sinks(
        long_prompts(
            ("a", 24, 0, 0, 0.95, 0.94, True),
            ("b", 50, 0, 0, 0.92, 0.91, True),
            ("a", 24, 1, 0, 0.95, 0.94, True),
            ("b", 50, 1, 0, 0.10, 0.00, False),
        ),
        0.9,
    )
    assert verdict.holds is True
    assert "2 of 2 heads" in verdict.reason
    assert "1 of them in every one" in verdict.reason


def test_has_no_sinks_where_no_head_is_one_often_enough_and_short_prompts_do_not_count():
    verdict = has_sinks(
        long_prompts(
            ("a", 24, 0, 0, 0.95, 0.62, True),
            ("b", 24, 0, 0, 0.10, 0.00, False),
            ("c", 24, 0, 0, 0.10, 0.00, False),
            ("d", 23, 0, 0, 1.00, 1.00, True),
            ("e", 2, 0, 0, 1.00, 1.00, True),
        ),
        0.9,
    )
    assert verdict.holds is False
    assert "0.62" in verdict.reason


def test_has_sinks_cannot_be_judged_from_short_prompts():
    verdict = has_sinks(long_prompts(("a", 23, 0, 0, 1.0, 1.0, True)), 0.9)
    assert verdict.holds is None
    assert "24" in verdict.reason


def length_rows(*prompts: tuple[str, dict[int, tuple[float, float]]]) -> pd.DataFrame:
    """Rows of a length table from (prompt, {n: (mean score, mean excess)})."""
    rows = [(prompt, n, float(null_score(n)), *values) for prompt, lengths in prompts for n, values in lengths.items()]
    return frame("prompt n_tokens null_score mean_score mean_excess", *rows)


def test_a_fall_that_uniform_attention_explains_is_no_effect_of_length():
    verdict = length_effect(length_rows(("a", {1: (1, NAN), 2: (0.77, 0.06), 100: (0.10, 0.05)})))
    assert verdict.holds is False
    for number in ("0.770", "0.100", "0.750", "0.052", "0.060", "0.050", "100 tokens"):
        assert number in verdict.reason


@pytest.mark.parametrize(("first", "last", "word"), [(0.9, 0.7, "lose"), (0.3, 0.5, "gain")])
def test_a_change_of_excess_is_an_effect_of_length(first, last, word):
    verdict = length_effect(length_rows(("a", {1: (1, NAN), 2: (0.9, first), 24: (0.5, last)})))
    assert verdict.holds is True
    assert word in verdict.reason


def test_only_prompts_that_reach_the_longest_length_are_compared():
    """The short prompt alone would make the excess fall from 1 to 0."""
    verdict = length_effect(
        length_rows(("a", {2: (0.8, 0.2), 24: (0.3, 0.2)}), ("short", {2: (1.0, 1.0), 3: (1.0, 1.0)}))
    )
    assert verdict.holds is False
    assert "mean excess from 0.200 to 0.200" in verdict.reason


@pytest.mark.parametrize("longest", [1, 2, 23])
def test_an_effect_of_length_cannot_be_judged_from_short_prompts(longest):
    lengths = {n: (1.0, 0.5) for n in range(1, longest + 1)}
    assert length_effect(length_rows(("a", lengths))).holds is None


def hypothesis_row(**values: float) -> pd.Series:
    row = {"first_layer_sinks": 4, "p_later_given_first": 0.8, "p_later": 0.4, "ci_low": 0.6, "ci_high": 0.9}
    return pd.Series(row | {"p_value": 0.01} | values)


def test_the_first_layer_hypothesis_holds_where_sinks_follow_more_than_the_base_rate():
    verdict = first_layer_hypothesis(hypothesis_row(p_later_given_first=0.74038))
    assert verdict.holds is True
    for number in ("74.04%", "60.00 to 90.00%", "40.00%", "p = 0.01"):
        assert number in verdict.reason


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"p_later_given_first": 0.49, "p_later": 0.1, "ci_low": 0.3}, "most later layers do not follow"),
        ({"p_value": 0.05}, "no more than"),
        ({"ci_low": 0.4}, "no more than"),
        ({"p_later": 0.95, "p_value": 0.9}, "no more than"),
    ],
    ids=["below half", "not significant", "interval reaches the base rate", "high base rate"],
)
def test_the_first_layer_hypothesis_does_not_hold_where_one_condition_fails(values, why):
    verdict = first_layer_hypothesis(hypothesis_row(**values))
    assert verdict.holds is False
    assert why in verdict.reason


@pytest.mark.parametrize(
    "values",
    [
        {"first_layer_sinks": 0, "p_later_given_first": NAN, "ci_low": NAN, "ci_high": NAN, "p_value": NAN},
        {"p_later_given_first": NAN, "p_later": NAN, "ci_low": NAN, "ci_high": NAN, "p_value": NAN},
    ],
    ids=["no first-layer sinks", "single layer"],
)
def test_the_first_layer_hypothesis_cannot_be_tested_where_the_correlation_is_undefined(values):
    verdict = first_layer_hypothesis(hypothesis_row(**values))
    assert verdict.holds is None
    assert "nan" not in verdict.reason


def test_the_first_layer_hypothesis_is_not_affirmed_without_the_interval_that_its_rule_asks_for():
    """A single prompt has no interval; the stated rule is an interval above the base rate."""
    verdict = first_layer_hypothesis(hypothesis_row(ci_low=NAN, ci_high=NAN))
    assert verdict.holds is not True
    assert "nan" not in verdict.reason


BENCHMARK = "phase n_tokens strategy policy heads_replaced kl top1_agreement speedup_vs_sdpa ceiling"


def timed(columns: str, *rows: tuple) -> pd.DataFrame:
    """A benchmark table whose rounds all gave the same speedup."""
    table = frame(columns, *rows)
    return table.assign(speedup_low=table["speedup_vs_sdpa"])


SDPA = ("prefill", 128, "sdpa", "none", 0, 0.0, 1.0, 1.0, 1.0)
EAGER = ("prefill", 128, "eager", "none", 0, 0.0, 1.0, 9.0, 1.0)  # nothing was replaced, so it is no optimization


def test_optimizing_is_worth_it_where_a_harmless_row_is_faster():
    verdict = worth_optimizing(
        timed(
            BENCHMARK,
            SDPA,
            EAGER,
            ("prefill", 128, "first_value", "consistent", 5, 0.01, 0.98, 1.25, 1.3),
            ("prefill", 128, "first_value", "first_layer", 9, 0.02, 0.99, 2.0, 2.1),
            ("prefill", 128, "reuse", "first_layer", 9, 0.001, 0.97, 3.0, 3.1),
        )
    )
    assert verdict.holds is True
    assert "`first_value` with policy `consistent` at 128 tokens: 1.25 times" in verdict.reason
    assert "5 heads replaced (ceiling 1.30)" in verdict.reason


def test_optimizing_is_not_worth_it_where_harmless_rows_are_no_faster():
    verdict = worth_optimizing(
        timed(BENCHMARK, SDPA, EAGER, ("prefill", 128, "reuse", "consistent", 5, 0.0, 1.0, 1.01, 1.3))
    )
    assert verdict.holds is False
    assert "1.01 times" in verdict.reason


def test_a_speedup_that_only_some_rounds_reached_is_not_worth_it():
    table = timed(
        BENCHMARK,
        SDPA,
        ("prefill", 128, "reuse", "consistent", 5, 0.0, 1.0, 60.0, 1.3),
        ("prefill", 128, "first_value", "consistent", 5, 0.0, 1.0, 1.01, 1.3),
    )
    table.loc[1, "speedup_low"] = 0.9
    verdict = worth_optimizing(table)
    assert verdict.holds is False
    assert "1.01 times" in verdict.reason
    assert worth_having(table.assign(batch=1))[0].holds is False


def test_optimizing_is_not_worth_it_where_every_row_does_harm():
    verdict = worth_optimizing(
        timed(
            BENCHMARK,
            SDPA,
            ("prefill", 128, "reuse", "first_layer", 5, 1.7, 0.4, 2.0, 2.1),
            ("prefill", 24, "first_value", "first_layer", 5, 0.3, 0.7, 2.0, 2.1),
        )
    )
    assert verdict.holds is False
    assert "`first_value` with policy `first_layer` at 24 tokens" in verdict.reason
    assert "0.3" in verdict.reason
    assert "0.700" in verdict.reason


def test_optimizing_was_not_possible_where_no_head_was_replaced():
    assert worth_optimizing(timed(BENCHMARK, SDPA, EAGER)).holds is None


def test_what_is_worth_having_is_said_for_each_phase_and_length():
    table = timed(
        f"{BENCHMARK} batch",
        *((*row, 1) for row in (SDPA, EAGER)),
        ("prefill", 128, "reuse", "consistent", 5, 0.0, 1.0, 1.01, 1.2, 1),
        ("prefill", 128, "first_value", "consistent", 5, 0.5, 0.5, 3.0, 3.2, 1),
        ("prefill", 128, "first_value", "consistent", 5, 0.0, 1.0, 9.0, 9.0, 8),
        ("decode", 128, "first_value", "consistent", 5, 0.001, 1.0, 1.25, 1.5, 1),
        ("decode", 512, "sdpa", "none", 0, 0.0, 1.0, 1.0, 1.0, 1),
        ("prefill", 512, "first_value", "consistent", 5, 0.5, 0.5, 3.0, 3.2, 1),
    )
    verdicts = {verdict.reason.split(":")[0]: verdict for verdict in worth_having(table)}
    assert verdicts["prefill at 128 tokens"].holds is False
    assert "the fastest being `reuse` with policy `consistent` (1.01 times" in verdicts["prefill at 128 tokens"].reason
    assert verdicts["decoding at 128 tokens"].holds is True
    assert "`first_value` with policy `consistent` is worth having" in verdicts["decoding at 128 tokens"].reason
    assert verdicts["decoding at 512 tokens"].holds is None
    assert "no harmless way" in verdicts["prefill at 512 tokens"].reason


@pytest.mark.parametrize(("at_24", "holds"), [(0.75, False), (1.25, True)])
def test_the_original_proposal_is_set_beside_sdpa_and_eager_whatever_its_speed(at_24, holds):
    columns = "phase n_tokens strategy policy heads_replaced speedup_vs_sdpa speedup_vs_eager"
    others = ("prefill", 24, "first_value", "consistent", 5, 0.1, 0.1), ("prefill", 24, "reuse", "x", 0, 0.2, 0.2)
    reuse = ("prefill", 24, "reuse", "consistent", 5, at_24, 0.875), ("decode", 64, "reuse", "first_layer", 2, 1.5, 2.0)
    verdict = original_proposal(frame(columns, *others, *reuse))
    assert verdict.holds is holds
    assert f"at {at_24} (`reuse` with policy `consistent` at 24 tokens) to 1.50 (decoding `reuse`" in verdict.reason
    assert "at 0.88 to 2.00 times eager's" in verdict.reason
    assert original_proposal(frame(columns, *others)).holds is None


def test_the_pareto_front_is_what_nothing_else_beats():
    table = frame(
        "name speedup_vs_sdpa kl",
        ("sdpa", 1.0, 0.0),
        ("mild", 1.1, 0.001),
        ("slower and worse", 1.05, 0.01),
        ("as fast, worse", 1.1, 0.002),
        ("fast", 2.0, 0.1),
        ("no quality", 3.0, NAN),
    )
    assert pareto_front(table)["name"].tolist() == ["sdpa", "mild", "fast"]


@pytest.mark.parametrize(("share", "holds"), [(0.125, False), (0.75, True)])
def test_a_small_share_of_attention_is_said_to_bound_the_gain(share, holds):
    columns = "phase n_tokens batch attention_share"
    verdict = attention_share(
        frame(columns, ("prefill", 512, 1, 0.9), ("prefill", 24, 1, share), ("decode", 8, 1, 0.1))
    )
    assert verdict.holds is holds
    assert f"{100 * share:.0f}% of a prefill of 24 tokens and 90% of one of 512" in verdict.reason
    assert ("little to gain" in verdict.reason) is not holds
    assert attention_share(frame(columns, ("prefill", 24, 1, NAN))).holds is None
    noise = attention_share(frame(columns, ("prefill", 24, 1, -0.03), ("prefill", 512, 1, 0.5)))
    assert "takes no measurable part of a prefill of 24 tokens and 50% of one of 512" in noise.reason


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (366, 512, "71.48%"),
        (117, 512, "22.85%"),
        (0, 512, "0.00%"),
        (77 / 104, 1, "74.04%"),
        (19.3548387, 100, "19.35%"),
        (NAN, 1, "undefined"),
        (None, 1, "undefined"),
    ],
)
def test_percent_prints_two_decimals_as_the_original_study_does(part, whole, text):
    assert percent(part, whole) == text


LENGTHS_OF = {"hello": ("short", 2), "fox": ("long", 30)}
PROVENANCE = {"source": "models/tiny", "revision": "0123abc", "dtype": "float32", "bos": "auto", "device": "cpu"}
STATISTICS = "first_layer_sinks p_later_given_first p_later lift phi ci_low ci_high p_value"
UNDEFINED = (0, NAN, 0.125, NAN, NAN, NAN, NAN, NAN)


def made_up_tables() -> Tables:
    """Two models of 2 layers with 4 heads each: one with sinks that follow, one whose first layer has none."""
    scores, heads, lengths, correlation, benchmark, comparison = [], [], [], [], [], []
    for model, score, share in (("sinky", 0.9375, 0.75), ("plain", 0.25, 0.0)):
        for prompt, (set_name, n) in LENGTHS_OF.items():
            for k in range(1, n + 1):
                for threshold in (0.3, 0.9):
                    excess = NAN if k == 1 else 0.8125 * score
                    lengths.append((model, set_name, prompt, k, threshold, share, score, float(null_score(k)), excess))
            for layer, head in ((layer, head) for layer in range(2) for head in range(4)):
                where = (NAN, NAN) if n <= 4 else (0 if head else 2, score)
                row = (model, set_name, prompt, n, layer, head, score, 0.0, 0.8125 * score, score > 0.9)
                scores.append((*row, *where))
        for set_name, prompts, tokens in (("short", 1, 2.0), ("long", 1, 30.0), ("all", 2, 16.0)):
            for layer, head in ((layer, head) for layer in range(2) for head in range(4)):
                heads.append((model, set_name, layer, head, prompts, tokens, score, 0.4375, 0.8125 * score, share))
            for threshold in (0.3, 0.9):
                row = (model, set_name, "all", NAN, threshold)
                first, later = (6, 0.74038) if threshold == 0.9 else (8, 0.96875)
                follow = (first, later, 0.40625, 1.8225, 0.53125, 0.59375, 0.90625, 0.015625)
                correlation.append((*row, *(follow if model == "sinky" else UNDEFINED)))
        for n, value in ((2, 0.8125), (24, 0.21875)):
            row = (model, "all", "all", n, 0.9)
            follow = (3, value, 0.1875, 1.5, 0.25, 0.125, 0.875, 0.03125)
            correlation.append((*row, *(follow if model == "sinky" else UNDEFINED)))
        quality = (0.0015625, 0.9921875, 1.0015625)
        for strategy, policy, replaced, speed in (("sdpa", "none", 0, 1.0), ("first_value", "consistent", 3, 1.53125)):
            row = (model, "prefill", 24, 1, strategy, policy, replaced, replaced / 8, 0.0046875, 0.000625, speed)
            share = NAN if replaced else 0.125
            benchmark.append((*row, 2.28125, 1.65625, *(quality if replaced else (0.0, 1.0, 1.0)), "test CPU", share))
        part = ("measured_vs_simulated", "5 tokens", model, "measured", 43.75, 0.5625, 0.25)
        comparison.append((*part, 65.625 if model == "sinky" else NAN))
    comparison.append(("measured_vs_simulated", "5 tokens", "simulated toy", "simulated", 18.75, 0.53125, NAN, 15.625))
    lengths = frame("model set prompt n_tokens threshold sink_fraction mean_score null_score mean_excess", *lengths)
    scores = frame(
        "model set prompt n_tokens layer head sink_score null_score excess_score is_sink strongest_position "
        "position_score",
        *scores,
    )
    return Tables(
        **statistics_tables(lengths),
        long_prompts=long_prompt_table([scores], MIN_TOKENS),
        positions=position_table([scores], 0.9),
        heads=frame(
            "model set layer head prompts mean_tokens mean_sink_score mean_null_score mean_excess_score sink_share",
            *heads,
        ),
        lengths=lengths,
        correlation=frame(f"model set prompt n_tokens threshold {STATISTICS}", *correlation),
        comparison=frame(
            "comparison group side kind sink_percent mean_score mean_excess correlation_percent",
            *comparison,
        ),
        simulation=frame("preset n_tokens fitted_to", ("toy", 5, None)),
        benchmark=timed(
            "model phase n_tokens batch strategy policy heads_replaced head_fraction median_s iqr_s speedup_vs_sdpa "
            "speedup_vs_eager ceiling kl top1_agreement perplexity_ratio device attention_share",
            *benchmark,
        ),
        quality=frame(
            "model set n_tokens texts strategy policy heads_replaced kl top1_agreement top5_agreement perplexity_ratio",
            ("sinky", "code", NAN, 2, "first_value", "consistent", 2.5, 0.25, 0.75, 0.875, 1.25),
            ("sinky", "code", 24, 2, "first_value", "consistent", 3, 0.125, 0.75, 0.875, 1.25),
            ("sinky", "code", NAN, 2, "first_value", "first_layer", 3, 0.125, 0.75, 0.875, 1.25),
            ("sinky", "long", NAN, 1, "first_value", "consistent", 0, 0.0, 1.0, 1.0, 1.0),
        ),
        answers=frame(
            "model prompt strategy policy answer_tokens identical departs_at",
            ("sinky", "hello", "first_value", "consistent", 128, True, NAN),
            ("sinky", "fox", "first_value", "consistent", 128, False, 40),
            ("sinky", "hello", "reuse", "consistent", 128, True, NAN),
        ),
        verification=frame(
            "model prompt n_tokens max_mass_difference",
            ("sinky", "hello", 2, 1.5e-8),
            ("sinky", "fox", 30, 6e-8),
            ("plain", "fox", 30, 2e-7),
        ),
        costs=frame(
            "stage jobs total_s longest_s longest cpu_s peak_rss_mib peak",
            ("capture", 3, 31.75, 20.25, "sinky/00001", 43.0, 1000.75, "plain/00000"),
            ("plans", 2, 0.25, 0.125, "plain/first_layer", NAN, NAN, NAN),
        ),
        provenance=dict.fromkeys(("sinky", "plain"), PROVENANCE),
        threshold=0.9,
    )


def report(tables: Tables) -> str:
    return markdown(tables)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    (part,) = [part for part in text.split("\n## ") if part.startswith(heading)]
    return part


def cells_of_each_table(text: str, heading: str) -> list[list[dict[str, str]]]:
    """The rows of every table under a heading, without footnote marks."""
    found = []
    for block in section(re.sub(r"\[\^\d+\]", "", text), heading).split("\n\n"):
        split = [[c.strip() for c in line.strip("|").split("|")] for line in block.splitlines() if line.startswith("|")]
        if split:
            found.append([dict(zip(split[0], row, strict=True)) for row in split[2:]])
    return found


def cells(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first of them."""
    return cells_of_each_table(text, heading)[0]


def assert_no_nan(text: str) -> None:
    assert not re.search(r"\b(nan|NaN|None|inf|NaT)\b|<NA>", text)


def test_the_results_of_a_model_are_the_numbers_of_its_tables():
    (short, long, every) = cells(report(made_up_tables()), "Results: sinky")
    assert (short["set"], long["set"], every["set"]) == ("short", "long", "all")
    assert long == {
        "set": "long",
        "prompts": "1",
        "mean tokens": "30.0",
        "total heads": "8",
        "sink heads": "6",
        "sink %": "75.00%",
        "mean score": "0.938",
        "null": "0.438",
        "mean excess": "0.762",
        "correlation": "74.04%",
        "base rate": "40.62%",
    }
    assert every["prompts"] == "2"
    assert "models/tiny" in section(report(made_up_tables()), "Results: sinky")


def test_the_impact_of_length_is_tabulated_at_lengths_that_some_prompt_reaches():
    rows = cells(report(made_up_tables()), "Impact of sequence length")
    assert [(row["model"], row["tokens"], row["prompts"]) for row in rows] == [
        (model, tokens, prompts)
        for model in ("sinky", "plain")
        for tokens, prompts in (("2", "2"), ("5", "1"), ("10", "1"), ("24", "1"))
    ]
    assert rows[1]["sink %"] == "75.00%"
    assert rows[1]["mean score"] == "0.938"
    assert rows[1]["null"] == "0.457"
    assert rows[1]["mean excess"] == "0.762"


def test_correlations_carry_base_rate_interval_and_p_value_at_every_threshold():
    rows = cells(report(made_up_tables()), "Strength of the first-layer correlation")
    assert len(rows) == 2 * 3 * 2
    row = rows[-7]
    assert (row["model"], row["set"], row["threshold"]) == ("sinky", "all", "0.9")
    assert row["first-layer sinks"] == "6"
    assert (rows[-8]["threshold"], rows[-8]["first-layer sinks"]) == ("0.3", "8")
    assert row["correlation"] == "74.04%"
    assert row["95% interval"] == "59.38% to 90.62%"
    assert row["base rate"] == "40.62%"
    assert row["lift"] == "1.822"
    assert row["phi"] == "0.531"
    assert row["p"] == "0.0156"


def test_undefined_values_are_called_so_and_are_never_nan_or_0():
    text = report(made_up_tables())
    assert_no_nan(text)
    row = cells(text, "Strength of the first-layer correlation")[-1]
    assert row["model"] == "plain"
    undefined = ("correlation", "95% interval", "lift", "phi", "p")
    assert {row[name] for name in undefined} == {"undefined"}
    assert row["base rate"] == "12.50%"
    assert {row["correlation"] for row in cells(text, "Results: plain")} == {"undefined"}
    simulated = {row["setting"]: row for row in cells(text, "Simulated matrices")}
    assert simulated["plain"]["correlation"] == "undefined"


def test_simulated_rows_say_that_they_are():
    text = report(made_up_tables())
    rows = {row["setting"]: row for row in cells(text, "Simulated matrices")}
    assert rows["simulated toy"] == {
        "tokens": "5",
        "setting": "simulated toy",
        "kind": "simulated",
        "sink %": "18.75%",
        "mean score": "0.531",
        "correlation": "15.62%",
    }
    assert rows["sinky"]["kind"] == "measured"
    assert rows["sinky"]["correlation"] == "65.62%"


def test_timings_carry_ceiling_and_quality():
    rows = cells(report(made_up_tables()), "Optimization potential")
    assert len(rows) == 4
    assert rows[1] == {
        "model": "sinky",
        "phase": "prefill",
        "tokens": "24",
        "batch": "1",
        "strategy": "first_value",
        "policy": "consistent",
        "heads replaced": "3 (37.50%)",
        "median ms": "4.69 ± 0.31",
        "vs SDPA": "1.53",
        "vs eager": "2.28",
        "ceiling": "1.66",
        "KL": "1.6e-03",
        "top-1": "99.22%",
        "perplexity": "× 1.002",
    }
    text = section(report(made_up_tables()), "Optimization potential")
    assert "test CPU" in text
    assert "prefill at 24 tokens: `first_value` with policy `consistent` is worth having (1.53 times SDPA" in text
    assert "takes 12% of a prefill of 24 tokens" in text


def test_quality_and_answers_are_those_of_the_tables():
    tables = cells_of_each_table(report(made_up_tables()), "Optimization potential")
    assert tables[1] == [
        {
            "model": "sinky",
            "set": "code",
            "texts": "2",
            "strategy": "first_value",
            "heads replaced": "2.5",
            "KL": "2.5e-01",
            "top-1": "75.00%",
            "top-5": "87.50%",
            "perplexity": "× 1.250",
        }
    ]
    names = ("strategy", "prompts", "tokens", "identical", "first departure (median token)")
    assert [tuple(row[name] for name in names) for row in tables[2]] == [
        ("first_value", "2", "128", "50.00%", "40"),
        ("reuse", "1", "128", "100.00%", "none"),
    ]


def test_every_verdict_stands_in_the_report_with_its_numbers():
    tables = made_up_tables()
    text = report(tables)
    assert "8 of 8 heads are sinks" in section(text, "Conclusion")
    assert has_sinks(tables.of("long_prompts", "plain"), 0.9).reason in section(text, "Conclusion")
    assert length_effect(tables.of("lengths", "sinky")).reason in section(text, "Impact of sequence length")
    assert "it weakens at 8 tokens (95% interval 5 to 12)" in section(text, "Length threshold")
    assert worth_optimizing(tables.of("benchmark", "sinky")).reason in section(text, "Optimization potential")


def test_the_sink_position_is_counted_over_strong_heads_only():
    lines = section(report(made_up_tables()), "Where the sink is")
    assert "of 8 cases (head and prompt) of 0.9 or more, 75.00% on position 0, 25.00% on position 2" in lines
    assert "**plain**: no head puts 0.9" in lines


def test_the_largest_difference_from_eager_attention_is_reported_with_its_prompt():
    lines = section(report(made_up_tables()), "Exactness").splitlines()
    assert "6.0e-08 (prompt `fox`, 30 tokens), over 2 recomputed prompts" in lines[2]
    assert "2.0e-07 (prompt `fox`, 30 tokens), over 1 recomputed" in lines[3]


def test_costs_are_added_up_and_what_was_too_short_to_sample_is_called_so():
    text = report(made_up_tables())
    assert cells(text, "What it cost") == [
        {
            "stage": "capture",
            "jobs": "3",
            "time": "31.8 s",
            "longest job": "20.2 s (sinky/00001)",
            "CPU time": "43.0 s",
            "peak memory": "1001 MiB (plain/00000)",
        },
        {
            "stage": "plans",
            "jobs": "2",
            "time": "0.2 s",
            "longest job": "0.1 s (plain/first_layer)",
            "CPU time": "too short to sample",
            "peak memory": "too short to sample",
        },
    ]
    assert "32 s in 5 jobs, the largest 1001 MiB" in section(text, "What it cost")


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ({}, "with the strategy and policy of the row named"),
        ({"correlation": {"p_value": 0.5}}, "with the strategy and policy of the row named"),
        ({"benchmark": {"speedup_low": 0.5}}, "replacing them did not pay"),
        ({"benchmark": {"speedup_low": 0.5}, "long_prompts": {"sink_share": 0.0}}, "there are no sinks to use"),
    ],
    ids=["all hold", "hypothesis fails", "no speedup", "no sinks"],
)
def test_the_strategy_follows_from_the_verdicts(changes, strategy):
    tables = made_up_tables()
    tables = replace(tables, **{name: getattr(tables, name).assign(**values) for name, values in changes.items()})
    (line,) = [line for line in section(report(tables), "Conclusion").splitlines() if line.startswith("- **sinky**")]
    assert strategy in line


def test_a_study_too_short_to_judge_does_not_conclude_that_there_are_no_sinks():
    tables = made_up_tables()
    tables = replace(
        tables,
        long_prompts=tables.long_prompts.iloc[:0],
        benchmark=tables.benchmark[tables.benchmark["heads_replaced"] == 0],
    )
    conclusion = section(report(tables), "Conclusion")
    assert "cannot be judged" in conclusion
    assert "there are no sinks" not in conclusion


def test_footnotes_are_numbered_in_order_and_the_same_one_is_listed_once():
    first, second = evidence("heads/m.csv", "set=long"), evidence("comparison.csv", "group=5 tokens")
    rows = [{"set": "long", "sinks": 3, "evidence": first}, {"set": "all", "sinks": 4, "evidence": second}]
    assert number_footnotes(f"{table(rows)}\n\nThree{first}.").splitlines() == [
        "| set | sinks |",
        "| --- | --- |",
        "| long[^1] | 3 |",
        "| all[^2] | 4 |",
        "",
        "Three[^1].",
        "",
        "[^1]: `results/heads/m.csv`: set=long",
        "[^2]: `results/comparison.csv`: group=5 tokens",
    ]
    assert number_footnotes("No number.") == "No number."


def test_every_row_and_every_verdict_says_which_rows_of_which_table_it_comes_from():
    text, notes = report(made_up_tables()).split("\n\n[^1]: ")
    text = re.sub(r"^\|.*\n(?=\| ---)", "", text, flags=re.M)  # heads of tables
    rows = [line for line in text.splitlines() if line.startswith(("| ", "- ")) and not line.startswith("| ---")]
    bodies = [line for line in rows if re.search(r"\d", line)]
    assert len(bodies) > 40
    for line in bodies:
        assert re.search(r"^\| [^|]*\[\^\d+\] \||\[\^\d+\]$", line), line
    listed = f"[^1]: {notes}".strip().splitlines()
    assert [int(re.match(r"\[\^(\d+)\]: `(?:results/|published\.csv)", note)[1]) for note in listed] == list(
        range(1, len(listed) + 1)
    )
    assert len(set(listed)) == len(listed)


def test_the_summary_holds_the_answer_three_numbers_and_a_figure_of_the_model_with_sinks():
    text = report(made_up_tables()).split("\n## ")[0]
    lines = re.sub(r"\[\^\d+\]", "", text).splitlines()
    assert "- **sinky** has sinks. The first-layer hypothesis holds; replacing sink heads pays." in lines
    assert any(
        line.startswith("- **plain** has no sinks. The first-layer hypothesis cannot be tested;") for line in lines
    )
    assert "| sinky | 75.00% (0.762) | 74.04% (40.62%) | 1.53 × |" in lines
    assert "| plain | 0.00% (0.203) | undefined (12.50%) | 1.53 × |" in lines
    assert re.findall(r"\(figures/(.*)\.png\)", text) == ["lengths_sinky"]


@pytest.fixture
def page(tmp_path) -> Callable[[str], str]:
    """The HTML page of some Markdown, beside a figure of 2 x 1 pixels called dot."""
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (2, 1)).save(tmp_path / "figures/dot.png")
    return lambda text: html(text, tmp_path)


def test_the_page_has_every_section_figure_and_note_of_the_markdown_and_needs_no_network(page):
    note = evidence("heads/m.csv", "set=long")
    rows = [{"set": "long", "sinks": 3, "evidence": note}]
    text = number_footnotes(f"# Title\n\n{figure('dot', 'A dot')}\n\n## First part\n\n{table(rows)}\n\n- Three.{note}")
    made = page(text)
    assert re.findall(r'<section id="(.*?)">', made) == ["summary", "first-part", "evidence"]
    assert '<a href="#first-part">First part</a>' in made
    assert '<img src="data:image/png;base64,' in made
    assert "<figcaption>A dot</figcaption>" in made
    assert "<p><figure>" not in made
    source = "results/heads/m.csv: set=long"
    assert re.findall(r"<td([^>]*)>", made) == [f' title="{source}"'] * 2
    assert made.count(f'<a href="#note-1" title="{source}">[1]</a>') == 2
    assert '<li id="note-1">' in made
    assert not re.search(r"""(src|href)=["'](?!#|data:|explorer.html)""", made)
    assert "@import" not in made


def test_a_figure_that_is_not_there_is_named(page, refuses):
    with refuses("figures/none.png"):
        page(figure("none", "Nothing"))


def test_what_looks_like_html_in_names_stays_text(page):
    hostile = "<script>alert(1)</script>"
    note = evidence("x.csv", f'prompt="{hostile}')
    made = page(number_footnotes(f"## {hostile}\n\n{table([{'set': hostile, 'evidence': note}])}"))
    assert "<script" not in made
    assert made.count("&lt;script&gt;") >= 4


@pytest.mark.parametrize("width", [390, 1280])
def test_the_summary_fits_a_desktop_screen_and_nothing_is_wider_than_the_window(page, tmp_path, width):
    (tmp_path / "figures/lengths_sinky.png").parent.mkdir(exist_ok=True)
    for name in set(re.findall(r"\(figures/(.+?)\.png\)", report(made_up_tables()))):
        Image.new("RGB", (1360, 540)).save(tmp_path / f"figures/{name}.png")
    path = tmp_path / "findings.html"
    path.write_text(page(report(made_up_tables())), encoding="utf-8")
    with opened(path, width=width, height=900) as browser:
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        bottom = browser.evaluate("document.getElementById('summary').getBoundingClientRect().bottom")
        assert bottom <= 900 or width == 390
        titles = browser.evaluate("[...document.querySelectorAll('td')].map(cell => cell.title)")
        assert len(titles) > 100
        assert all(title.startswith(("results/", "published.csv")) for title in titles)


def test_every_result_section_names_existing_tables_as_its_source():
    sources = set(re.findall(r"`results/([^`]+)`", report(made_up_tables())))
    per_model = ("scores", "heads", "lengths", "correlation", "benchmark", "verification", "curves", "weakening")
    per_model += ("layer_pairs", "persistence", "domains", "heldout_errors", "quality", "answers")
    expected = {f"{name}/{model}.csv" for name in per_model for model in ("sinky", "plain")}
    assert sources == expected | {"comparison.csv", "control.csv", "costs.csv", "simulation/toy.csv"}


def test_a_study_without_simulation_is_reported():
    text = report(replace(made_up_tables(), simulation=pd.DataFrame()))
    assert "no simulation" in section(text, "Simulated matrices")


def test_a_study_of_one_token_prompts_is_reported_without_nan():
    tables = made_up_tables()
    one = tables.lengths["n_tokens"] == 1
    text = report(
        replace(
            tables,
            lengths=tables.lengths[one],
            long_prompts=tables.long_prompts.iloc[:0],
            positions=tables.positions.iloc[:0],
            heads=tables.heads.assign(mean_tokens=1.0, mean_excess_score=NAN),
        )
    )
    assert_no_nan(text)
    assert {row["mean excess"] for row in cells(text, "Results: sinky")} == {"undefined"}


def test_a_study_of_one_model_and_one_set_is_reported_without_nan():
    tables = made_up_tables()
    keep = {"set": ["short", "all"], "model": ["sinky"]}
    parts = {}
    for name in (
        *("long_prompts", "positions", "heads", "lengths", "correlation"),
        *("benchmark", "quality", "answers", "verification"),
    ):
        table = getattr(tables, name)
        for column, values in keep.items():
            if column in table:
                table = table[table[column].isin(values)]
        parts[name] = table
    parts["correlation"] = parts["correlation"].assign(ci_low=NAN, ci_high=NAN)
    text = report(replace(tables, **parts))
    assert_no_nan(text)
    assert "(95% interval undefined)" in text
