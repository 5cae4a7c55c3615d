"""Settings set beside each other: short and long prompts, one model and another, trained and untrained, measured and
simulated."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd

from sinkstudy.stats.resampling import Resampling, ratio_intervals

_COMPARISON = (
    "comparison group side kind model set prompts mean_tokens heads mean_sink_heads sink_percent mean_score null_score "
    "mean_excess correlation_percent base_rate_percent threshold"
)
_FOLLOWS = ["p_later_given_first", "p_later"]
_CONTROL = (
    "model control threshold n_tokens prompts sink_fraction control_sink_fraction difference ci_low ci_high "
    "mean_excess control_mean_excess excess_difference excess_low excess_high"
)
_BESIDE = "model preset threshold n_tokens layer prompts measured ci_low ci_high simulated"


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
    correlation = correlation[(correlation["threshold"] == threshold) & (correlation["prompt"] == "all")]
    sets = heads.groupby(["model", "set"], sort=False).agg(
        prompts=("prompts", "first"),
        mean_tokens=("mean_tokens", "first"),
        heads=("layer", "size"),
        mean_sink_heads=("sink_share", "sum"),
        sink_fraction=("sink_share", "mean"),
        mean_score=("mean_sink_score", "mean"),
        null_score=("mean_null_score", "mean"),
        mean_excess=("mean_excess_score", "mean"),
    )
    sets = sets.join(correlation[correlation["n_tokens"].isna()].set_index(["model", "set"])[_FOLLOWS])
    few = sets.loc[list(product(heads["model"].unique(), dict.fromkeys(short_and_long_sets(heads))))].reset_index()
    sets = sets.reset_index()
    parts = [
        few.assign(comparison="short_vs_long", group=few["model"], side=few["set"], kind="measured"),
        sets.assign(comparison="model_vs_model", group=sets["set"], side=sets["model"], kind="measured"),
    ]
    if len(simulation):
        lengths = lengths[lengths["threshold"] == threshold]
        parts.append(
            _simulated_and_measured(simulation, lengths, correlation).assign(comparison="measured_vs_simulated")
        )
    table = pd.concat(parts, ignore_index=True).assign(threshold=threshold)
    table["sink_percent"] = 100 * table["sink_fraction"]
    table[["correlation_percent", "base_rate_percent"]] = 100 * table[_FOLLOWS]
    return table[_COMPARISON.split()]


def _simulated_and_measured(simulation: pd.DataFrame, lengths: pd.DataFrame, correlation: pd.DataFrame) -> pd.DataFrame:
    """At each simulated length the simulations, then the models with prompts that reach it."""
    by_length = lengths[lengths["n_tokens"].isin(simulation["n_tokens"])].groupby(["n_tokens", "model"], sort=False)
    measured = by_length[["sink_fraction", "mean_score", "null_score", "mean_excess"]].mean()
    measured = measured.assign(prompts=by_length.size(), set="all", kind="measured")
    at_length = correlation[correlation["n_tokens"].notna()].set_index(["n_tokens", "model"])
    measured = measured.join(at_length[_FOLLOWS]).reset_index()
    simulated = simulation.rename(columns=lambda name: name.removeprefix("simulated_"))
    simulated = simulated.rename(columns={"sinks": "mean_sink_heads"})
    simulated = simulated.assign(model="simulated " + simulated["preset"], set="simulated")
    both = pd.concat([simulated, measured]).sort_values("n_tokens", kind="stable")
    tokens = both["n_tokens"]
    return both.assign(group=tokens.astype(str) + " tokens", side=both["model"], mean_tokens=tokens.astype(float))


def short_and_long_sets(heads: pd.DataFrame) -> tuple[str, str]:
    """The sets called `short` and `long`, or, where either is missing, the ones of fewest and of most tokens."""
    tokens = heads[heads["set"] != "all"].groupby("set")["mean_tokens"].mean()
    short = "short" if "short" in tokens else tokens.idxmin()
    long = "long" if "long" in tokens else tokens.idxmax()
    return short, long


def control_table(
    lengths: pd.DataFrame, pairs: list[tuple[str, str]], at: list[int], resampling: Resampling
) -> pd.DataFrame:
    """Trained models against the same architecture with random weights: a row per pair, threshold and length of `at`,
    with the sink fraction and mean excess of both, and their differences.

    `lengths`: the length tables of all models. Intervals of the differences are bootstrapped over the prompts that
    both models saw, paired by prompt.
    """
    rows = []
    for model, control in pairs:
        sides = [lengths[(lengths["model"] == name) & lengths["n_tokens"].isin(at)] for name in (model, control)]
        both = sides[0].merge(sides[1], on=["prompt", "threshold", "n_tokens"], suffixes=("", "_control"))
        for (threshold, n), part in both.groupby(["threshold", "n_tokens"]):
            own = part[["sink_fraction", "mean_excess"]]
            other = part[[f"{name}_control" for name in own]].set_axis(own.columns, axis=1)
            low, high = ratio_intervals((own - other).to_numpy(), np.ones(own.shape), resampling)
            by_measure = np.stack([own.mean(), other.mean(), (own - other).mean(), low, high], axis=1)
            rows.append((model, control, threshold, n, len(part), *by_measure.ravel()))
    return pd.DataFrame(rows, columns=_CONTROL.split())


def beside_simulated_table(
    heldout: pd.DataFrame,
    heads: pd.DataFrame,
    probability: Mapping[str, Mapping[int, np.ndarray]],
    threshold: float,
) -> pd.DataFrame:
    """Sink fractions of every model whose shape a simulation has: of each layer, and of all heads (`layer` empty).

    `heldout` and `heads`: those tables of all models. `probability`: by preset and length, the simulated probability of
    a sink (layer, head). `measured` is over both halves of the prompts, its interval from the intervals of the halves,
    which are independent.
    """
    measured = _over_halves(heldout[heldout["threshold"] == threshold]) if len(heldout) else heldout
    shapes = heads.groupby("model")[["layer", "head"]].max() + 1
    parts = []
    for preset, by_length in probability.items():
        simulated = pd.concat([_fractions(n, values) for n, values in by_length.items()])
        shape = list(next(iter(by_length.values())).shape)
        for model in shapes.index[shapes.eq(shape).all(axis=1)]:
            of_model = measured[measured["model"] == model]
            parts.append(of_model.merge(simulated, on=["n_tokens", "layer"]).assign(preset=preset))
    table = pd.concat(parts).assign(threshold=threshold) if parts else pd.DataFrame(columns=_BESIDE.split())
    # All heads come after the layers.
    return table[_BESIDE.split()].sort_values(["model", "preset", "n_tokens", "layer"], ignore_index=True)


def _fractions(n: int, probability: np.ndarray) -> pd.DataFrame:
    layers = pd.array([*range(len(probability)), pd.NA], dtype="Int64")
    return pd.DataFrame({"n_tokens": n, "layer": layers, "simulated": [*probability.mean(1), probability.mean()]})


def _over_halves(heldout: pd.DataFrame) -> pd.DataFrame:
    """A row per model, length and layer. What was measured does not depend on the simulator: one will do."""
    rows = heldout[(heldout["simulator"] == "formula") & heldout["quantity"].isin(["layer", "sink_fraction"])]
    rows = rows.assign(layer=rows["layer"].astype("Int64"))
    by = ["model", "n_tokens", "layer"]
    weight = rows["prompts"] / rows.groupby(by, dropna=False)["prompts"].transform("sum")
    half_width = (rows["ci_high"] - rows["ci_low"]) / 2
    rows = rows.assign(measured=weight * rows["measured"], variance=(weight * half_width) ** 2)
    # An interval of one half says nothing of both.
    sums = rows.groupby(by, dropna=False)[["prompts", "measured", "variance"]].sum(skipna=False).reset_index()
    half_width = np.sqrt(sums.pop("variance"))
    low, high = sums["measured"] - half_width, sums["measured"] + half_width
    return sums.assign(ci_low=low.clip(0, 1), ci_high=high.clip(0, 1))
