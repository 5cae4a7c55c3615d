"""Made-up result tables for tests of what is written from them: a model with sinks and one without."""

import pandas as pd

NAN = float("nan")


def frame(columns: str, *rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns.split())


def statistics_tables(lengths: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of curves, weakening, layer pairs, heads over sets, control, held-out prompts and publications.

    `lengths`: a length table of the models `sinky` and `plain`; the curves average it over prompts.
    """
    curves = []
    for (model, threshold, n), part in lengths.groupby(["model", "threshold", "n_tokens"], sort=False):
        mean = part[["sink_fraction", "mean_score", "null_score", "mean_excess"]].mean()
        ends = (0.0625, 0.9375, -0.25, 0.8125) if len(part) > 1 else (NAN,) * 4
        followed = (0.65625, 0.40625) if model == "sinky" else (NAN, 0.0)
        curves.append((model, "all", threshold, n, len(part), *mean, 3, *followed, *ends))
    return {
        "curves": frame(
            "model set threshold n_tokens prompts sink_fraction mean_score null_score mean_excess first_layer_sinks "
            "p_later_given_first p_later sink_fraction_low sink_fraction_high mean_excess_low mean_excess_high",
            *curves,
        ),
        "weakening": frame(
            "model threshold prompts length length_low length_high before after fall excess_before excess_after "
            "fall_low fall_high draws last_length",
            ("sinky", 0.9, 2, 8, 5, 12, 0.8125, 0.21875, 0.59375, 0.40625, 0.03125, 0.25, 0.75, 100, 24),
            ("plain", 0.9, 2, *(NAN,) * 10, 0, NAN),
        ),
        "layer_pairs": frame(
            "model n_tokens threshold layer_a layer_b prompts sinks_a p_b_given_a p_b lift phi ci_low ci_high",
            ("sinky", NAN, 0.9, 0, 1, 2, 6, 0.78125, 0.40625, 1.9231, 0.53125, 0.59375, 0.90625),
            ("sinky", NAN, 0.9, 1, 0, 2, 0, NAN, 0.375, NAN, NAN, NAN, NAN),
            ("sinky", 24, 0.9, 0, 1, 2, 6, 0.125, 0.40625, 0.3, -0.5, 0.0, 0.25),
            ("plain", NAN, 0.9, 0, 1, 2, 0, NAN, 0.0, NAN, NAN, NAN, NAN),
            ("plain", NAN, 0.9, 1, 0, 2, 0, NAN, 0.0, NAN, NAN, NAN, NAN),
        ),
        "persistence": frame("model n_tokens threshold set", ("sinky", 24, 0.9, "all"), ("plain", 24, 0.9, "all")),
        "domains": frame(
            "model n_tokens threshold layer head prompts sets sets_where_sink sink_share p_value q_value",
            ("sinky", 24, 0.9, 0, 0, 4, 2, 2, 1.0, NAN, NAN),
            ("sinky", 24, 0.9, 0, 1, 4, 2, 1, 0.5, 0.01, 0.02),
            ("sinky", 24, 0.9, 1, 0, 4, 2, 0, 0.25, 0.6, 0.6),
            ("sinky", 24, 0.9, 1, 1, 4, 2, 0, 0.0, NAN, NAN),
            ("plain", 24, 0.9, 0, 0, 4, 2, 0, 0.0, NAN, NAN),
        ),
        "control": frame(
            "model control threshold n_tokens prompts sink_fraction control_sink_fraction difference ci_low ci_high "
            "mean_excess control_mean_excess excess_difference excess_low excess_high",
            ("sinky", "plain", 0.9, 2, 2, 0.75, 0.0, 0.75, 0.5, 1.0, 0.75, 0.125, 0.625, 0.5625, 0.6875),
            ("sinky", "plain", 0.9, 24, 1, 0.75, 0.0, 0.75, NAN, NAN, 0.75, 0.125, 0.625, NAN, NAN),
        ),
        "heldout_errors": frame(
            "model simulator threshold cells layer_error sink_fraction_error correlation_error chance_error p_value",
            ("sinky", "formula", 0.9, 16, 0.40625, 0.3125, 0.21875, 0.015625, 0.0078125),
            ("sinky", "calibrated", 0.9, 16, 0.03125, 0.015625, NAN, 0.015625, 0.25),
        ),
        "published": frame(
            "quantity model value unit threshold n_tokens dtype conditions source link checked",
            ("sink_fraction", "Big-1B", 71.48, "%", 0.9, 2, None, "one prompt", "a study", None, "as quoted"),
            ("decode_speedup", "GQA", 1.5, "x", NAN, NAN, None, "up to", "a paper", "https://x.org", "in the abstract"),
        ),
    }
