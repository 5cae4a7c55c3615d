"""Published figures, each beside the same quantity measured here: agrees, differs, or cannot be compared, and why."""

import pandas as pd

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import percent
from sinkstudy.stats.definitions import DEFINITIONS

__all__ = ["DEFINITIONS", "NEAR", "compared", "window_share"]

NEAR = 0.05  # a figure of another model this near to the measured interval is said to agree
# Quantity: the table that has it, its column, and the columns of the published row that find its row there.
_MEASURED = {
    "sink_fraction": ("definitions", "share", ["definition", "set", "threshold", "n_tokens"]),
    "correlation": ("curves", "p_later_given_first", ["set", "threshold", "n_tokens"]),
}

Row = dict[str, object]


def compared(t: Tables) -> list[Row]:
    """The published rows, each with the measured row `here` of the main model, its `value_here`, the names of the
    columns that find it, `verdict` (agrees, differs, not comparable) and `why`."""
    return [row | _beside(t, row) for row in t.rows("published")]


def _beside(t: Tables, row: Row) -> Row:
    incomparable = {"here": None, "value_here": None, "found_by": [], "verdict": "not comparable"}
    if row["quantity"] not in _MEASURED:
        return incomparable | {"why": "speed is measured here by the plans of this study, on this machine"}
    table, column, keys = _MEASURED[row["quantity"]]
    missing = [key for key in keys if pd.isna(row[key])]
    if missing:
        names = {"n_tokens": "the length", "definition": "the definition"}
        return incomparable | {"why": f"{' and '.join(names.get(key, key) for key in missing)} is not given"}
    found = t.rows(table, model=t.main, **{key: row[key] for key in keys})
    if not found or pd.isna(found[0][column]):
        of = "the first layer has no sinks" if found else f"no prompts of set {row['set']} at this length and threshold"
        return incomparable | {"why": f"here {of}"}
    here, published = found[0], float(row["value"]) / 100
    ends = [here[f"{column}_{end}"] for end in ("low", "high")]
    low, high = ends if not pd.isna(ends[0]) else (here[column], here[column])
    away = published - here[column]
    agrees = low - NEAR <= published <= high + NEAR
    points = f"{abs(100 * away):.1f} points {'above' if away > 0 else 'below'} {t.main}"
    return {
        "here": here,
        "value_here": here[column],
        "found_by": keys,
        "verdict": "agrees" if agrees else "differs",
        "why": f"{row['model']} lies {points}, another model on other text",
    }


def window_share(t: Tables, model: str) -> Row | None:
    """How much of the fall of the sink percentage is due to the growing window of queries that the score averages.

    Over the prompts that reach the longest tabulated length beyond 128 tokens: the shares over the first 2 queries,
    over the first 128 (which later tokens cannot change) and over all. None where no prompt is that long.
    """
    rows = t.of("definitions", model=model, set="all", threshold=t.threshold)
    rows = rows[rows["n_tokens"] > 128]
    if rows.empty:
        return None
    longest = rows[rows["n_tokens"] == rows["n_tokens"].max()].set_index("definition")
    two, fixed, every = longest["share"].reindex(["first_2_queries", "first_128_queries", "study"])
    return {
        "n_tokens": int(longest["n_tokens"].iloc[0]),
        "prompts": int(longest["prompts"].iloc[0]),
        "two": percent(two),
        "fixed": percent(fixed),
        "every": percent(every),
        "part": percent(fixed - every, two - every) if two > every else "none",
    }
