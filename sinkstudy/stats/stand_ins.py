"""Whether a property of a head that captures show could stand in for what replacing the head costs."""

import pandas as pd
from scipy.stats import spearmanr

PROPERTIES = ("mean_sink_score", "mean_excess_score", "mean_output_norm", "value_drain")
_KEY = ["model", "layer", "head"]


def with_scores(costs: pd.DataFrame, heads: pd.DataFrame, activations: pd.DataFrame) -> pd.DataFrame:
    """Rows of `costs` (model, strategy, window, layer, head, ...) with each head's PROPERTIES, means over all prompts.

    `heads`: the table of heads, of which the rows of set `all` are read. `activations`: the table with value drains.
    """
    over_all = heads[heads["set"] == "all"]
    drains = activations.dropna(subset=["head"]).groupby(_KEY, as_index=False)["value_drain"].mean()
    columns = ["model", *costs.columns.drop("model"), *PROPERTIES]
    return costs.merge(over_all.merge(drains, on=_KEY, how="left"), on=_KEY, how="left")[columns]


def stand_in_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of each property with the cost, over the heads that have both: model, strategy,
    window, property, heads, spearman, p_value. `costs`: as `with_scores` gives it."""
    rows, by = [], ["model", "strategy", "window"]
    for priced, part in costs.groupby(by, sort=False, dropna=False):
        for name in PROPERTIES:
            known = part.dropna(subset=[name])
            found = spearmanr(known["cost"], known[name])
            rows.append((*priced, name, len(known), found.statistic, found.pvalue))
    return pd.DataFrame(rows, columns=[*by, "property", "heads", "spearman", "p_value"])
