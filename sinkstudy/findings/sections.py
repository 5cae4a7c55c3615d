"""Rows of the findings that no table holds as they are printed: chosen, counted or averaged over a table's rows."""

import re

import pandas as pd

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.rules import SIGNIFICANT
from sinkstudy.findings.text import Markdown, note, row_note
from sinkstudy.stats.comparison import short_and_long_sets
from sinkstudy.stats.scores import null_score
from sinkstudy.stats.speedups import pareto_front

ORIGINAL = "the original study"  # its name in published.csv
SHOWN_LENGTHS = (2, 5, 10, 24, 64, 128, 256, 512, 1024, 2048)
SHOWN_PAIRS = 5
_SHARES = {"quarter": 0.25, "half": 0.5, "all": 1.0}  # of KV heads, cheapest first

Row = dict[str, object]


def original_prompts(t: Tables, model: str) -> list[Row]:
    """A model's prompts in the place of the original study's two, as rows of the correlation table.

    `wanted`: the original's, 2 tokens, and 24 to 30 in the set `long`. `exact`: whether the prompt is like that; where
    none is, it is the one of the nearest length.
    """
    prompts = [row for row in t.rows("correlation", model=model, threshold=t.threshold) if row["prompt"] != "all"]
    long = [row for row in prompts if row["set"] == "long"]
    two = nearest(prompts, 2, 2) | {"wanted": "2 tokens"}
    sentence = nearest(long or prompts, 24, 30) | {"wanted": "24 to 30 tokens in the set long"}
    sentence["exact"] = sentence["exact"] and bool(long)
    return [two, sentence]


def nearest(rows: list[Row], least: int, most: int) -> Row:
    """The first row of the length nearest to one from `least` to `most`; `exact`: whether it is such a length."""
    away = [max(least - row["n_tokens"], row["n_tokens"] - most, 0) for row in rows]
    return rows[away.index(min(away))] | {"exact": min(away) == 0}


def opening(t: Tables) -> list[Row]:
    """The original study's table by length: as published, and for the main model."""
    every = t.rows("heads", model=t.main, set="all")
    rows = _as_published(t)
    for place, row in enumerate(original_prompts(t, t.main)):
        at = {"model": t.main, "prompt": row["prompt"], "n_tokens": row["n_tokens"], "threshold": t.threshold}
        (length,) = t.rows("lengths", **at)
        share = length["sink_fraction"]
        notes = row_note(length, "prompt", "n_tokens", "threshold") + row_note(row, "prompt", "threshold")
        rows.append(
            row
            | {"place": place, "name": f"{t.main}: {row['prompt']}", "null": length["null_score"]}
            | {"heads": len(every), "sinks": round(share * len(every)), "share": share}
            | {"note": Markdown(notes + note(t.file_of("heads", t.main), "set=all, a row per head"))}
        )
    return sorted(rows, key=lambda row: row["place"])


def _as_published(t: Tables) -> list[Row]:
    """The same columns from the published figures; heads are counted in the conditions: `366 of 512 heads`."""
    rows = []
    for place, ((n,), part) in enumerate(t.groups("published", "n_tokens", source=ORIGINAL)):
        value = part.set_index("quantity")["value"] / 100
        conditions = part.loc[part["quantity"] == "sink_fraction", "conditions"]
        counts = re.match(r"(\d+) of (\d+) heads", " ".join(map(str, conditions)))
        sinks, heads = counts.groups() if counts else (None, None)
        first = part.iloc[0]
        rows.append(
            {"place": place, "name": f"{first['model']}, published", "n_tokens": n, "threshold": first["threshold"]}
            | {"heads": heads, "sinks": sinks, "share": value.get("sink_fraction"), "null": float(null_score(int(n)))}
            | {"p_later_given_first": value.get("correlation"), "p_later": None, "first_layer_sinks": None}
            | {"note": note("published.csv", f"source={ORIGINAL}, n_tokens={n:.0f}")}
        )
    return rows


def sets(t: Tables, model: str) -> list[Row]:
    """A row per prompt set and `all`: averages over heads, with the correlation over its whole prompts."""
    where = {"model": model, "prompt": "all", "n_tokens": None, "threshold": t.threshold}
    return [
        {
            "prompts": part["prompts"].iloc[0],
            "mean_tokens": part["mean_tokens"].iloc[0],
            "heads": len(part),
            "sinks": part["sink_share"].sum(),
            **part[["sink_share", "mean_sink_score", "mean_null_score", "mean_excess_score"]].mean(),
            "correlation": t.rows("correlation", **where, set=name)[0],
        }
        for (name,), part in t.groups("heads", "set", model=model)
    ]


def shown_sets(t: Tables) -> list[str]:
    return list(dict.fromkeys((*short_and_long_sets(t["heads"]), "all")))


def layer_pairs(t: Tables, model: str) -> dict[str, list]:
    """Ordered pairs of layers over whole prompts: all, those beyond the base rate (by phi), and sinkless layers."""
    pairs = t.rows("layer_pairs", model=model, threshold=t.threshold, n_tokens=None)
    clear = [row for row in pairs if row["ci_low"] > row["p_b"]]
    silent = dict.fromkeys(row["layer_a"] for row in pairs if row["sinks_a"] == 0)
    return {"pairs": pairs, "beyond": sorted(clear, key=lambda row: -row["phi"]), "silent": list(silent)}


def consistency(t: Tables, model: str) -> list[Row]:
    """How many heads are sinks in every, some or no prompt cut to a length, and how many depend on the set."""
    return [
        {
            "n_tokens": n,
            "prompts": part["prompts"].iloc[0],
            "sets": part["sets"].iloc[0],
            "heads": len(part),
            "every": (part["sink_share"] == 1).sum(),
            "some": part["sink_share"].between(0, 1, inclusive="neither").sum(),
            "none": (part["sink_share"] == 0).sum(),
            "some_sets": ((part["sets_where_sink"] > 0) & (part["sets_where_sink"] < part["sets"])).sum(),
            "set_dependent": (part["q_value"] < SIGNIFICANT).sum(),
        }
        for (n,), part in t.groups("set_dependence", "n_tokens", model=model, threshold=t.threshold)
    ]


def beside_simulated(t: Tables) -> list[Row]:
    """Every model that has the shape of a simulation: its name and shape, the rows of each preset, and `rows`, one per
    length (layer empty) and then per layer (at the longest length), with what each preset simulates."""
    found = []
    for (model,), cells in t.groups("beside_simulated", "model"):
        presets = dict(list(cells.groupby("preset", sort=False)))
        longest = next(iter(presets.values()))["n_tokens"].max()
        by_preset = cells.pivot(index=["n_tokens", "layer"], columns="preset", values="simulated")
        once = cells.drop_duplicates(["n_tokens", "layer"])
        per_layer = once[once["layer"].notna() & (once["n_tokens"] == longest)]
        rows = t.with_file("beside_simulated", pd.concat([once[once["layer"].isna()], per_layer]))
        for row in rows:
            row["simulated"] = by_preset.loc[(row["n_tokens"], row["layer"])].to_dict()
        about = {"model": model, "layers": int(cells["layer"].max()) + 1, "longest": longest}
        found.append(about | {"presets": presets, "rows": rows})
    return found


def never_measured(t: Tables) -> list[Row]:
    """A row of the simulation table per preset whose shape no model has."""
    rows = t["simulation"].drop_duplicates("preset").to_dict("records")
    return [row for row in rows if not len(t.of("beside_simulated", preset=row["preset"]))]


def timings(t: Tables) -> list[Row]:
    """The rows of the benchmark that replace nothing, and of the others those that no row of their cell beats."""
    shown = []
    for _, cell in t.groups("benchmark", "model", "phase", "n_tokens", "batch"):
        front = pareto_front(cell)
        shown += [cell[cell["heads_replaced"] == 0], front[front["heads_replaced"] > 0]]
    return t.with_file("benchmark", pd.concat(shown))


def quality(t: Tables) -> list[Row]:
    """Quality under the policy `consistent`, of each set at the largest length at which it replaced heads."""
    rows = t.of("quality", policy="consistent")
    rows = rows[rows["heads_replaced"] > 0]
    longest = rows.groupby(["model", "set"])["n_tokens"].transform("max")
    return t.with_file("quality", rows[rows["n_tokens"] == longest])


def head_costs(t: Tables) -> list[Row]:
    """A row per model, strategy and window: the cost of the cheapest quarter and half of the KV heads and of all, and
    how it goes with properties of the heads."""
    rows = []
    for key, part in t.groups("head_costs", "model", "strategy", "window"):
        model, strategy, window = (None if pd.isna(one) else one for one in key)
        spent = part.drop_duplicates(["layer", "kv_head"])["kv_head_cost"].sort_values().cumsum().to_numpy()
        found = t.of("cost_stand_ins", model=model, strategy=strategy, window=window)
        rows_of = f"strategy={strategy}" + (f", window={window:.0f}" if window else "")
        notes = note(t.file_of("head_costs", model), f"{rows_of}, sums over KV heads")
        notes += note(t.file_of("cost_stand_ins", model), rows_of)
        rows.append(
            {"model": model, "strategy": strategy, "window": window, "heads": len(part), "note": Markdown(notes)}
            | found.set_index("property")["spearman"].to_dict()
            | {name: spent[round(share * len(spent)) - 1] for name, share in _SHARES.items()}
        )
    return rows


def answers(t: Tables) -> list[Row]:
    """A row per model, strategy and policy: how many greedy answers stay what they were."""
    groups = t["answers"].groupby(["model", "strategy", "policy"], sort=False, as_index=False)
    counted = groups.agg(
        prompts=("identical", "size"),
        tokens=("answer_tokens", "first"),
        identical=("identical", "mean"),
        departs_at=("departs_at", "median"),
    )
    return t.with_file("answers", counted)
