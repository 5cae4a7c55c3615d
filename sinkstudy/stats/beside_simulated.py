"""Measured models beside simulated ones of the same number of layers and heads, layer by layer and over length."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

_COLUMNS = "model preset threshold n_tokens layer prompts measured ci_low ci_high simulated"


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
        for model, shape in shapes.iterrows():
            if tuple(shape) != next(iter(by_length.values())).shape:
                continue
            simulated = pd.concat([_fractions(n, values) for n, values in by_length.items()])
            of_model = measured[measured["model"] == model]
            parts.append(of_model.merge(simulated, on=["n_tokens", "layer"]).assign(preset=preset))
    table = pd.concat(parts).assign(threshold=threshold) if parts else pd.DataFrame(columns=_COLUMNS.split())
    # All heads come after the layers.
    return table[_COLUMNS.split()].sort_values(["model", "preset", "n_tokens", "layer"], ignore_index=True)


def _fractions(n: int, probability: np.ndarray) -> pd.DataFrame:
    layers = pd.array([*range(len(probability)), pd.NA], dtype="Int64")
    return pd.DataFrame(
        {"n_tokens": n, "layer": layers, "simulated": [*probability.mean(1), probability.mean()]},
    )


def _over_halves(heldout: pd.DataFrame) -> pd.DataFrame:
    """A row per model, length and layer. What was measured does not depend on the simulator: one will do."""
    rows = heldout[(heldout["simulator"] == "formula") & heldout["quantity"].isin(["layer", "sink_fraction"])]
    rows = rows.assign(layer=rows["layer"].astype("Int64"))
    by = ["model", "n_tokens", "layer"]
    total = rows.groupby(by, dropna=False)["prompts"].transform("sum")
    weight = rows["prompts"] / total
    half_width = (rows["ci_high"] - rows["ci_low"]) / 2
    rows = rows.assign(measured=weight * rows["measured"], variance=(weight * half_width) ** 2)
    together = rows.groupby(by, dropna=False)[["prompts", "measured", "variance"]].agg(_sum_of_known).reset_index()
    half_width = np.sqrt(together.pop("variance"))
    low, high = together["measured"] - half_width, together["measured"] + half_width
    return together.assign(ci_low=low.clip(0, 1), ci_high=high.clip(0, 1))


def _sum_of_known(values: pd.Series) -> float:
    """NaN where one of them is: an interval of one half says nothing of both."""
    return values.sum(skipna=False)
