"""Why sinks are where they are: the rule on the first token's activation, value drain, and sinks at other tokens."""

import numpy as np
import pandas as pd

from sinkstudy.findings.rules import SIGNIFICANT, Verdict
from sinkstudy.stats.mechanism import SINK_EXCESS
from sinkstudy.stats.positions import EPSILON, KINDS

__all__ = ["EPSILON", "RAISED", "SHOWN_PLACES", "SINK_EXCESS", "drained", "mechanism", "sink_places"]

# Times the norm of the other tokens' residual stream. Random weights alone give twice: the first token, which attends
# to nothing but itself, is the only one whose attention output is no average.
RAISED = 3.0
SHOWN_PLACES = 5


def spans(layers: list[int]) -> str:
    """Layers in words, neighbours joined: `3 to 9 and 12`."""
    groups = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    *words, last = [str(group[0]) if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups]
    return f"{', '.join(words)} and {last}" if words else last


def mechanism(table: pd.DataFrame) -> Verdict:
    """Whether sinks come and go with the first token's activation; `table`: one model's, see `stats.mechanism`.

    They do where the rank correlation of activation and excess score over layers is above 0 with all of its interval,
    and more than layers picked at random would give: the interval, which is over prompts, knows nothing of how few
    layers there are.
    """
    if table.empty:
        return Verdict(None, "no prompt has two tokens, so no first token can be compared with others.")
    activation = table[table["quantity"] == "activation"].sort_values("layer").astype({"layer": int})
    of_all = table[table["layer"].isna()].set_index("quantity")
    relation, highest = of_all.loc["activation_correlation"], of_all.loc["highest_excess", "value"]
    if activation["value"].isna().any():
        return Verdict(None, "this architecture does not show the residual stream that enters its layers.")
    if len(activation) == 1:
        return Verdict(None, "the model has a single attention layer.")
    first, top = activation.iloc[0], activation.loc[activation["value"].idxmax()]
    numbers = {
        "highest_excess": highest,
        "first_layer_activation": first["value"],
        "highest_activation": top["value"],
        "highest_activation_layer": float(top["layer"]),
        "activation_p_value": of_all.loc["activation_p_value", "value"],
        "activation_correlation": relation["value"],
        "activation_correlation_low": relation["low"],
        "activation_correlation_high": relation["high"],
    }
    if highest < SINK_EXCESS:
        few = f"no head has a mean excess score of {SINK_EXCESS:g} (the highest is {highest:.2f})"
        return Verdict(None, f"{few}, so there are no sinks to explain.", numbers)
    if activation["low"].isna().any():
        return Verdict(None, "fewer than two prompts count, so there is no interval to judge by.", numbers)
    raised = activation.loc[activation["low"] >= RAISED, "layer"].tolist()
    if not raised:
        text = f"there are sinks, but the first token's activation is in no layer surely {RAISED:g} times the others'"
        return Verdict(False, f"{text} (at most {top['value']:.2f} times, in layer {top['layer']}).", numbers)
    if pd.isna(relation["low"]):
        return Verdict(None, "the activation, or the mean excess score, is the same in every layer.", numbers)
    numbers["sets_in_at_layer"] = float(raised[0])
    where = (
        f"the first token's activation is at least {RAISED:g} times the others' in layers "
        f"{spans(raised)}, at most {top['value']:.1f} times, in layer {top['layer']}"
    )
    over = (
        f"over {len(activation)} layers its rank correlation with the mean excess score is {relation['value']:.2f} "
        f"(95% interval {relation['low']:.2f} to {relation['high']:.2f}, p = {numbers['activation_p_value']:.2g})"
    )
    why = ""
    if first["layer"] < raised[0]:
        why = (
            f"; it sets in at layer {raised[0]}, and the first layer, where it is {first['value']:.2f} times, cannot "
            "predict what comes with it"
        )
    if relation["low"] > 0 and numbers["activation_p_value"] < SIGNIFICANT:
        return Verdict(True, f"{where}; {over}{why}.", numbers)
    if relation["low"] > 0:
        return Verdict(None, f"{where}; but {over}: so few layers may agree by chance.", numbers)
    return Verdict(False, f"{where}; but {over}: sinks do not surely come and go with it.", numbers)


def drained(table: pd.DataFrame) -> dict[str, dict] | None:
    """The rows on value drain by name, or None where the architecture does not show values or has no sink heads."""
    of_all = table[table["layer"].isna()].set_index("quantity")
    rows = of_all.reindex(["drain_correlation", "sink_head_drain", "other_head_drain"])
    return None if rows["value"].isna().any() else rows.to_dict("index")


def sink_places(sinks: pd.DataFrame) -> dict[str, object]:
    """Where the sinks of heads are, from rows of the table of sink positions, each one case (head and prompt).

    `cases`, `kinds`: how many in all and of each kind. `elsewhere`: a row per prompt and position away from the first
    token, those of most heads first.
    """
    if sinks.empty:
        return {"cases": 0, "kinds": {}, "elsewhere": []}
    by = ["prompt", "n_tokens", "position", "token", "kind"]
    away = sinks[sinks["position"] > 0].assign(token="'" + sinks["token"].fillna("") + "'")
    places = away.groupby(by, sort=False, as_index=False).agg(
        heads=("layer", "size"),
        layers=("layer", lambda layers: spans(sorted(layers.unique()))),
        mean_attention=("mean_attention", "mean"),
        first_attention=("first_attention", "mean"),
    )
    kinds = sinks["kind"].value_counts().reindex(KINDS, fill_value=0).to_dict()
    places = places.sort_values("heads", ascending=False, kind="stable")
    return {"cases": len(sinks), "kinds": kinds, "elsewhere": places.to_dict("records")}
