"""Made-up result tables for tests of what is written from them: a model with sinks, and its control without."""

from dataclasses import replace

import pandas as pd

from sinkstudy.findings import Tables
from sinkstudy.stats.profile import long_prompt_table
from sinkstudy.stats.scores import null_score

NAN = float("nan")
PROVENANCE = {"source": "models/tiny", "revision": "0123abc", "dtype": "float32", "bos": "auto", "device": "cpu"}
FIGURES = [
    *("heatmap_{}_all", "layers_{}", "head_curves_{}", "lengths_{}", "weakening_{}", "layer_pairs_{}", "predictors_{}"),
    *("activation_{}", "positions_{}"),
    *("persistence_{}", "set_dependence_{}"),
]
# A control is not timed and its settings of bos are not compared; `plain` has no held-out errors.
OF_SINKY = {"bos_arms_sinky", "timing_sinky", "tradeoff_sinky", "heldout_sinky"}


def frame(columns: str, *rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def mechanism_rows(model: str, activation: tuple, low: tuple, correlation: tuple, excess: float) -> list[tuple]:
    """Quantities of a model of two layers, the interval of each activation as wide above as below."""
    ends = zip(activation, low, strict=True)
    return [
        (model, "activation_correlation", NAN, *correlation, 2),
        (model, "activation_p_value", NAN, 0.03125, NAN, NAN, 2),
        (model, "drain_correlation", NAN, -0.6875, -0.75, -0.625, 8),
        (model, "sink_head_drain", NAN, 0.15625, 0.125, 0.1875, 3),
        (model, "other_head_drain", NAN, 0.96875, 0.9375, 1.0, 5),
        (model, "highest_excess", NAN, excess, excess, excess, 8),
        *[(model, "activation", layer, at, below, 2 * at - below, 2) for layer, (at, below) in enumerate(ends)],
    ]


def bos_rows(model: str) -> list[tuple]:
    """Two settings of bos at two lengths; at 2 tokens no query follows the first four."""
    rows = []
    for n, strongest in ((2, (NAN,) * 4), (24, (0.625, 0.25, 0.125, 0.0))):
        for arm, token, gain in (("never", None, 0.0), ("always", "<s>", 0.125)):
            score, excess = (0.5 + gain, 0.375, 0.6875), (0.25 + gain, 0.1875, 0.4375)
            row = (model, arm, token, n, 2, float(null_score(n)), 0.375, 0.25, 0.5, *score, *excess)
            rows.append((*row, gain, gain, gain, *strongest))
    return rows


def with_tables(study: Tables, **tables: pd.DataFrame) -> Tables:
    return replace(study, tables={**study.tables, **tables})


def study(prompts: tuple = (("hello", "short", 2), ("fox", "long", 30)), names=("sinky", "plain")) -> Tables:
    """Two models of 2 layers with 4 heads each: `sinky` with sinks that follow, and `plain`, its control.

    `prompts`: (prompt, set, tokens), one of set `short` and one of set `long`.
    """
    scores, heads, lengths, correlation, curves, comparison = [], [], [], [], [], []
    sinky, plain = names
    for model, score, share in ((sinky, 0.9375, 0.75), (plain, 0.25, 0.0)):
        pooled = [("all", "all", NAN, 0.9)]
        for prompt, set_name, n in prompts:
            for k in range(1, n + 1):
                excess = NAN if k == 1 else 0.8125 * score
                null = float(null_score(k))
                lengths += [(model, set_name, prompt, k, at, share, score, null, excess) for at in (0.3, 0.9)]
            for layer, head in ((layer, head) for layer in range(2) for head in range(4)):
                where = (NAN, NAN) if n <= 4 else (0 if head else 2, score)
                row = (model, set_name, prompt, n, layer, head, score, 0.0, 0.8125 * score, score > 0.9)
                scores.append((*row, *where))
            pooled += [(set_name, "all", NAN, 0.9), (set_name, prompt, n, 0.9)]
        for set_name, tokens in (("all", 16.0), *((set_name, float(n)) for _, set_name, n in prompts)):
            row = (model, set_name, 1 + (set_name == "all"), tokens, score, 0.4375, 0.8125 * score, share)
            heads += [(*row, layer, head) for layer in range(2) for head in range(4)]
        follow = (6, 0.74038, 0.40625, 1.8225, 0.53125, 0.59375, 0.90625, 0.015625)
        undefined = (0, NAN, 0.125, NAN, NAN, NAN, NAN, NAN)
        correlation += [(model, *row, *(follow if model == sinky else undefined)) for row in pooled]
        correlation.append((model, "all", "all", 24, 0.9, *(follow if model == sinky else undefined)))
        correlation += [(model, set_name, "all", NAN, 0.3, *follow) for _, set_name, _ in prompts]
        for n, count, ends in ((2, 2, (0.0625, 0.9375, -0.25, 0.8125, 0.59375, 0.90625)), (24, 1, (NAN,) * 6)):
            row = (model, "all", 0.9, n, count, share, score, float(null_score(n)), 0.8125 * score)
            curves.append((*row, 0.65625, 0.40625, *ends))
        row = ("measured_vs_simulated", "5 tokens", model, "measured", 43.75, 0.5625)
        comparison.append((*row, 65.625 if model == sinky else NAN))
    comparison.append(("measured_vs_simulated", "5 tokens", "simulated toy", "simulated", 18.75, 0.53125, 15.625))
    scores = frame(
        "model set prompt n_tokens layer head sink_score null_score excess_score is_sink strongest_position "
        "position_score",
        *scores,
    )
    cell, skipped = (sinky, "prefill", 24, 1), (sinky, "consistent", 24, "first_value")
    times = (0.0046875, 0.000625, 1.53125, 1.5, 1.5625, 8, 2.28125, 1.65625)
    quality = (0.0015625, 0.9921875, 1.0015625)
    original, paper = ("the original study", None, "no"), ("a paper", "https://x.org", "in the abstract")
    tables = dict(
        long_prompts=long_prompt_table([scores], 24),
        sink_positions=frame(
            "model set prompt n_tokens layer head position token kind mean_attention first_attention",
            *[(sinky, "long", "fox", 30, 1, head, 0, "The", "first", 0.75, 0.75) for head in range(3)],
            (sinky, "long", "fox", 30, 1, 3, 7, ",", "delimiter", 0.4375, 0.0625),
        ),
        mechanism=frame(
            "model quantity layer value low high count",
            *mechanism_rows(sinky, (0.9375, 8.5), (0.875, 6.5), (0.84375, 0.71875, 0.90625), 0.8125),
            *mechanism_rows(plain, (1.0625, 1.125), (1.0, 1.0625), (-0.25, -0.5, 0.125), 0.03125),
        ),
        bos_arms=frame(
            "model arm first_token n_tokens prompts null_score sink_fraction sink_fraction_low sink_fraction_high "
            "mean_score mean_score_low mean_score_high mean_excess mean_excess_low mean_excess_high excess_difference "
            "excess_difference_low excess_difference_high strongest_0 strongest_1 strongest_2 strongest_3",
            *bos_rows(sinky),
        ),
        heads=frame(
            "model set prompts mean_tokens mean_sink_score mean_null_score mean_excess_score sink_share layer head",
            *heads,
        ),
        lengths=frame("model set prompt n_tokens threshold sink_fraction mean_score null_score mean_excess", *lengths),
        correlation=frame(
            "model set prompt n_tokens threshold first_layer_sinks p_later_given_first p_later lift phi ci_low ci_high "
            "p_value",
            *correlation,
        ),
        curves=frame(
            "model set threshold n_tokens prompts sink_fraction mean_score null_score mean_excess p_later_given_first "
            "p_later sink_fraction_low sink_fraction_high mean_excess_low mean_excess_high p_later_given_first_low "
            "p_later_given_first_high",
            *curves,
        ),
        weakening=frame(
            "model threshold length length_low length_high before after fall excess_before excess_after excess_fall "
            "fall_low fall_high excess_fall_low excess_fall_high last_length",
            (sinky, 0.9, 8, 5, 12, 0.8125, 0.21875, 0.59375, 0.40625, 0.03125, 0.375, 0.25, 0.75, 0.125, 0.5, 24),
            (plain, 0.9, *(NAN,) * 14),
        ),
        predictors=frame(
            "model measure threshold n_tokens predictor auc auc_low auc_high gain gain_low gain_high behind behind_low "
            "behind_high log_loss brier precision recall undefined",
            *(
                (sinky, "score", 0.9, n, *row, 0.1875, 0.0625, 0.875, 0.8125, None)
                for n in (24, NAN)
                for row in (
                    ("layer_base_rate", 0.75, 0.625, 0.875, 0.0, 0.0, 0.0, 0.1875, 0.125, 0.25),
                    ("first_layer", 0.53125, 0.5, 0.5625, -0.21875, -0.25, -0.125, 0.40625, 0.375, 0.5),
                    ("record", 0.9375, 0.875, 0.96875, 0.1875, 0.125, 0.25, 0.0, 0.0, 0.0),
                )
            ),
            (plain, "score", 0.9, 24, "record", *(NAN,) * 13, "no head is a sink"),
        ),
        learning=frame(
            "model measure threshold n_tokens training_prompts auc auc_low auc_high",
            (sinky, "score", 0.9, 24, 1, 0.875, 0.8125, 0.90625),
            (sinky, "score", 0.9, 24, 2, 0.9375, 0.875, 0.96875),
        ),
        layer_pairs=frame(
            "model n_tokens threshold layer_a layer_b sinks_a p_b_given_a p_b lift phi ci_low ci_high",
            (sinky, NAN, 0.9, 0, 2, 6, 0.5, 0.40625, 1.2308, 0.125, 0.4375, 0.5625),
            (sinky, NAN, 0.9, 0, 1, 6, 0.78125, 0.40625, 1.9231, 0.53125, 0.59375, 0.90625),
            (sinky, NAN, 0.9, 1, 0, 0, NAN, 0.375, NAN, NAN, NAN, NAN),
            (sinky, 24, 0.9, 0, 1, 6, 0.125, 0.40625, 0.3, -0.5, 0.0, 0.25),
            (plain, NAN, 0.9, 0, 1, 0, NAN, 0.0, NAN, NAN, NAN, NAN),
            (plain, NAN, 0.9, 1, 0, 0, NAN, 0.0, NAN, NAN, NAN, NAN),
        ),
        set_dependence=frame(
            "model n_tokens threshold layer head prompts sets sets_where_sink sink_share p_value q_value",
            (sinky, 24, 0.9, 0, 0, 4, 2, 2, 1.0, NAN, NAN),
            (sinky, 24, 0.9, 0, 1, 4, 2, 1, 0.5, 0.01, 0.02),
            (sinky, 24, 0.9, 1, 0, 4, 2, 0, 0.25, 0.6, 0.6),
            (sinky, 24, 0.9, 1, 1, 4, 2, 0, 0.0, NAN, NAN),
            (plain, 24, 0.9, 0, 0, 4, 2, 0, 0.0, NAN, NAN),
        ),
        control=frame(
            "model control threshold n_tokens prompts sink_fraction control_sink_fraction difference ci_low ci_high "
            "mean_excess control_mean_excess excess_difference excess_low excess_high",
            (sinky, plain, 0.9, 2, 2, 0.75, 0.0, 0.75, 0.5, 1.0, 0.75, 0.125, 0.625, 0.5625, 0.6875),
            (sinky, plain, 0.9, 24, 1, 0.75, 0.0, 0.75, NAN, NAN, 0.75, 0.125, 0.625, NAN, NAN),
        ),
        comparison=frame("comparison group side kind sink_percent mean_score correlation_percent", *comparison),
        simulation=frame(
            "preset n_tokens fitted_to simulated_layers simulated_heads",
            ("toy", 5, None, 2, 8),
            ("big", 5, None, 32, 1024),
        ),
        beside_simulated=frame(
            "model preset threshold n_tokens layer prompts measured ci_low ci_high simulated",
            (sinky, "toy", 0.9, 5, 0, 2, 0.75, 0.625, 0.875, 0.25),
            (sinky, "toy", 0.9, 5, 1, 2, 0.5, 0.375, 0.625, 0.1875),
            (sinky, "toy", 0.9, 5, NAN, 2, 0.625, 0.5625, 0.6875, 0.21875),
        ),
        heldout_errors=frame(
            "model simulator threshold cells layer_error sink_fraction_error correlation_error chance_error p_value",
            (sinky, "formula", 0.9, 16, 0.40625, 0.3125, 0.21875, 0.015625, 0.0078125),
            (sinky, "calibrated", 0.9, 16, 0.03125, 0.015625, NAN, 0.015625, 0.25),
        ),
        definitions=frame(
            "model set definition unit first_query queries comparison threshold n_tokens prompts share share_low "
            "share_high",
            (sinky, "all", "study", "head", "counted", "all", ">=", 0.9, 2, 2, 0.75, 0.6875, 0.8125),
            (sinky, "all", "study", "head", "counted", "all", ">=", 0.9, 256, 1, 0.125, NAN, NAN),
            (sinky, "all", "first_2_queries", "head", "counted", "first 2", ">=", 0.9, 256, 1, 0.625, NAN, NAN),
            (sinky, "all", "first_128_queries", "head", "counted", "first 128", ">=", 0.9, 256, 1, 0.25, NAN, NAN),
            (sinky, "all", "gu", "head", "counted", "all", ">", 0.3, 64, 1, 0.5, NAN, NAN),
        ),
        published=frame(
            "quantity model value unit definition threshold n_tokens set dtype conditions source link checked",
            ("sink_fraction", "Big-1B", 71.48, "%", "study", 0.9, 2, "all", None, "366 of 512 heads", *original),
            ("correlation", "Big-1B", 74.04, "%", "study", 0.9, 2, "all", None, "one prompt", *original),
            ("sink_fraction", "Big-1B", 22.85, "%", "study", 0.9, 24, "all", None, "one sentence", *original),
            ("sink_fraction", "Big-8B", 99.02, "%", "gu", 0.3, 64, "all", None, "100 texts", *paper),
            ("sink_fraction", "Big-8B", 45.97, "%", "gu", 0.8, NAN, "all", None, None, *paper),
            ("decode_speedup", "GQA", 1.5, "x", None, NAN, NAN, None, None, "up to", *paper),
        ),
        benchmark=frame(
            "model phase n_tokens batch strategy policy heads_replaced head_fraction median_s iqr_s speedup_vs_sdpa "
            "speedup_low speedup_high degrees_of_freedom speedup_vs_eager ceiling kl top1_agreement perplexity_ratio "
            "device attention_share",
            (*cell, "sdpa", "none", 0, 0.0, 0.0046875, 0.000625, 1, 1, 1, 8, 1.5, 1, 0, 1, 1, "CPU", 0.125),
            (*cell, "sdpa", "again", 0, 0.0, 0.0046875, 0.000625, 1, 0.96875, 1.03125, 8, 1.5, 1, 0, 1, 1, "CPU", NAN),
            (*cell, "first_value", "consistent", 3, 0.375, *times, *quality, "CPU", NAN),
        ),
        skipping=frame(
            "model policy n_tokens strategy chosen_by texts heads_replaced shared_heads top1_agreement kl kl_low "
            "kl_high kl_beyond kl_beyond_low kl_beyond_high perplexity_ratio perplexity_ratio_low "
            "perplexity_ratio_high perplexity_beyond perplexity_beyond_low perplexity_beyond_high",
            (*skipped, "policy", 8, 3, 3, 0.9921875, 0.0015625, 0.001, 0.002, 0, 0, 0, 1.0015625, 1, 1.003, 1, 1, 1),
            (
                *skipped,
                "no_sinks",
                8,
                3,
                0,
                0.75,
                0.125,
                0.0625,
                0.25,
                0.12375,
                0.06,
                0.24,
                1.25,
                1.1,
                1.4,
                1.2,
                1,
                1.3,
            ),
            (*skipped, "random", 8, 3, 0.5, 0.875, 0.0625, 0.03, 0.125, 0.06125, 0.02, 0.12, 1.1, 1, 1.2, 1.1, 1, 1.2),
        ),
        quality=frame(
            "model set n_tokens texts strategy policy heads_replaced kl top1_agreement top5_agreement "
            "perplexity_ratio perplexity",
            (sinky, "held-out", 512, 4, "sdpa", "none", 0, 0.0, 1.0, 1.0, 1.0, 23.4375),
            (sinky, "code", 24, 2, "first_value", "consistent", 3, 0.125, 0.75, 0.875, 1.25, 30.0),
            (sinky, "code", 128, 2, "first_value", "consistent", 2.5, 0.25, 0.75, 0.875, 1.25, 30.0),
            (sinky, "code", 512, 2, "first_value", "consistent", 0, 0.0, 1.0, 1.0, 1.0, 24.0),
            (sinky, "long", 24, 2, "reuse", "consistent", 3, 0.125, 0.75, 0.875, 1.25, 30.0),
            (sinky, "code", 128, 2, "first_value", "first_layer", 3, 0.125, 0.75, 0.875, 1.25, 30.0),
        ),
        answers=frame(
            "model prompt strategy policy answer_tokens identical departs_at",
            (sinky, "hello", "first_value", "consistent", 128, True, NAN),
            (sinky, "fox", "first_value", "consistent", 128, False, 40),
            (sinky, "hello", "reuse", "consistent", 128, True, NAN),
        ),
        verification=frame(
            "model prompt n_tokens max_mass_difference max_score_difference",
            (sinky, "hello", 2, 1.5e-8, 1e-8),
            (sinky, "fox", 30, 6e-8, 2e-8),
            (plain, "fox", 30, 2e-7, 1e-7),
        ),
        costs=frame(
            "stage jobs total_s longest_s longest cpu_s peak_rss_mib peak",
            ("capture", 3, 31.75, 20.25, "sinky/00001", 43.0, 1000.75, "plain/00000"),
            ("plans", 2, 0.25, 0.125, "plain/first_layer", NAN, NAN, NAN),
        ),
        **dict.fromkeys(("cut_prompts", "head_costs", "cost_stand_ins", "retrieval"), pd.DataFrame()),
    )
    return Tables(
        tables,
        provenance=dict.fromkeys(names, PROVENANCE),
        threshold=0.9,
        controls=frozenset([plain]),
        figures=frozenset(name.format(model) for name in FIGURES for model in names) | OF_SINKY | {"simulated_toy"},
    )
