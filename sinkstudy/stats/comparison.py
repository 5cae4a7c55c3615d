"""Settings set beside each other: short and long prompts, one model and another, measured and simulated."""

import pandas as pd


def comparison_table(
    heads: pd.DataFrame,
    lengths: pd.DataFrame,
    correlation: pd.DataFrame,
    simulation: pd.DataFrame,
    threshold: float,
) -> pd.DataFrame:
    """All comparisons in one long table, a row per setting.

    `heads`, `lengths` and `correlation` are the tables of all models together. A figure shows one bar
    group per `group`; `side` names the setting of a row within it. `correlation_percent` is empty where undefined.
    """
    correlation = correlation[correlation["threshold"] == threshold]
    lengths = lengths[lengths["threshold"] == threshold]
    rows = [_set_row("short_vs_long", m, s, s, m, heads, correlation) for m, s in _short_and_long(heads)]
    rows += [_set_row("model_vs_model", m, s, m, s, heads, correlation) for m, s in _pairs(heads)]
    for n in sorted(simulation["n_tokens"].unique()) if len(simulation) else ():
        group = f"{n} tokens"
        here = simulation[simulation["n_tokens"] == n]
        rows += [_simulated_row(group, row["preset"], row) for _, row in here.iterrows()]
        rows += [
            _length_row(group, model, n, lengths, correlation)
            for model in lengths["model"].unique()
            if ((lengths["model"] == model) & (lengths["n_tokens"] == n)).any()
        ]
    return pd.DataFrame(rows).assign(threshold=threshold)


def short_and_long_sets(heads: pd.DataFrame) -> tuple[str, str]:
    """The sets called `short` and `long`, or, where either is missing, the ones of fewest and of most tokens."""
    tokens = heads[heads["set"] != "all"].groupby("set")["mean_tokens"].mean()
    short = "short" if "short" in tokens else tokens.idxmin()
    long = "long" if "long" in tokens else tokens.idxmax()
    return short, long


def _short_and_long(heads: pd.DataFrame) -> list[tuple[str, str]]:
    return [(model, name) for model in heads["model"].unique() for name in dict.fromkeys(short_and_long_sets(heads))]


def _pairs(heads: pd.DataFrame) -> list[tuple[str, str]]:
    return list(heads[["model", "set"]].drop_duplicates().itertuples(index=False, name=None))


def _percentages(correlation: pd.Series) -> dict:
    return {
        "correlation_percent": 100 * correlation["p_later_given_first"],
        "base_rate_percent": 100 * correlation["p_later"],
    }


def _set_row(comparison, model, set_name, side, group, heads, correlation) -> dict:
    part = heads[(heads["model"] == model) & (heads["set"] == set_name)]
    of_set = (correlation["set"] == set_name) & (correlation["prompt"] == "all") & correlation["n_tokens"].isna()
    row = correlation[(correlation["model"] == model) & of_set].iloc[0]
    return {
        "comparison": comparison,
        "group": group,
        "side": side,
        "kind": "measured",
        "model": model,
        "set": set_name,
        "prompts": part["prompts"].iloc[0],
        "mean_tokens": part["mean_tokens"].iloc[0],
        "heads": len(part),
        "mean_sink_heads": part["sink_share"].sum(),
        "sink_percent": 100 * part["sink_share"].mean(),
        "mean_score": part["mean_sink_score"].mean(),
        "null_score": part["mean_null_score"].mean(),
        "mean_excess": part["mean_excess_score"].mean(),
        **_percentages(row),
    }


def _length_row(group, model, n, lengths, correlation) -> dict:
    part = lengths[(lengths["model"] == model) & (lengths["n_tokens"] == n)]
    row = correlation[
        (correlation["model"] == model) & (correlation["n_tokens"] == n) & (correlation["prompt"] == "all")
    ].iloc[0]
    return {
        "comparison": "measured_vs_simulated",
        "group": group,
        "side": model,
        "kind": "measured",
        "model": model,
        "set": "all",
        "prompts": len(part),
        "mean_tokens": float(n),
        "sink_percent": 100 * part["sink_fraction"].mean(),
        "mean_score": part["mean_score"].mean(),
        "null_score": part["null_score"].mean(),
        "mean_excess": part["mean_excess"].mean(),
        **_percentages(row),
    }


def _simulated_row(group, preset, row) -> dict:
    return {
        "comparison": "measured_vs_simulated",
        "group": group,
        "side": f"simulated {preset}",
        "kind": "simulated",
        "model": f"simulated {preset}",
        "set": "simulated",
        "mean_tokens": float(row["n_tokens"]),
        "heads": row["simulated_heads"],
        "mean_sink_heads": row["simulated_sinks"],
        "sink_percent": 100 * row["simulated_sink_fraction"],
        "mean_score": row["simulated_mean_score"],
        **_percentages(row),
    }
