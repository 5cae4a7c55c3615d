"""Layer by layer: which layers' sinks foretell which others'."""

import pandas as pd

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import evidence, figure, number, percent, source, span, table

_SHOWN = 5


def section(t: Tables) -> str:
    parts = [_model(t, model) for model in t.models]
    return "\n\n".join(
        [
            "## Layer by layer",
            "If a head is a sink in layer a, is the head with the same index a sink in layer b? Whole prompts; the "
            f"{_SHOWN} pairs of layers whose decisions agree most (by phi) among those in which the interval of the "
            "share lies above the base rate.",
            *parts,
            source(*(f"layer_pairs/{model}.csv" for model in t.models)),
        ]
    )


def _model(t: Tables, model: str) -> str:
    pairs = t.of("layer_pairs", model)
    pairs = pairs[(pairs["threshold"] == t.threshold) & pairs["n_tokens"].isna()]
    where = f"n_tokens empty, threshold={t.threshold:g}"
    sinks = pairs.groupby("layer_a")["sinks_a"].first()
    silent = [str(layer) for layer in sinks[sinks == 0].index]
    if sinks.empty:
        return f"**{model}** has a single attention layer."
    if len(silent) == len(sinks):
        every = evidence(f"layer_pairs/{model}.csv", where)
        return f"**{model}**: no layer has a sink on any whole prompt, so none foretells another.{every}"
    clear = pairs[pairs["ci_low"] > pairs["p_b"]].sort_values("phi", ascending=False, kind="stable")
    text = f"**{model}**: {len(clear)} of {len(pairs)} ordered pairs of layers agree beyond the base rate"
    if silent:
        text += f"; without any sink, and so without a share: layer {', '.join(silent)}"
    rows = [_row(t, model, row) for _, row in clear.head(_SHOWN).iterrows()]
    return "\n\n".join(
        [
            f"{text}.{evidence(f'layer_pairs/{model}.csv', where)}",
            *([table(rows)] if rows else []),
            figure(
                f"layer_pairs_{model}",
                f"{model}: share of sinks of layer a whose head index is a sink in layer b, and what of it the base "
                "rate of layer b does not explain.",
            ),
        ]
    )


def _row(t: Tables, model: str, row: pd.Series) -> dict[str, object]:
    a, b = int(row["layer_a"]), int(row["layer_b"])
    return {
        "from layer": a,
        "to layer": b,
        "sinks in a": int(row["sinks_a"]),
        "share in b": percent(row["p_b_given_a"]),
        "95% interval": span(row, "ci", percent),
        "base rate": percent(row["p_b"]),
        "lift": number(row["lift"]),
        "phi": number(row["phi"]),
        "evidence": evidence(
            f"layer_pairs/{model}.csv", f"n_tokens empty, threshold={t.threshold:g}, layer_a={a}, layer_b={b}"
        ),
    }
