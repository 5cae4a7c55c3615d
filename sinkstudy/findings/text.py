"""How findings print numbers, tables, verdicts and where each comes from."""

import re
from collections.abc import Callable

import pandas as pd

from sinkstudy.findings.verdicts import Verdict

_OPEN, _CLOSE = "\ue000", "\ue001"  # private characters around a footnote's text until it has a number


def percent(part: float, whole: float = 1.0) -> str:
    """`part` of `whole` in percent with two decimals, as the original study prints it; `undefined` for NaN."""
    return "undefined" if pd.isna(part) else f"{100 * part / whole:.2f}%"


def number(value: float) -> str:
    """Three decimals; `undefined` for NaN."""
    # Adding zero turns the -0.000 of a tiny negative number into 0.000.
    return "undefined" if pd.isna(value) else f"{round(value, 3) + 0:.3f}"


def count(value: float) -> str:
    """A mean count: no decimals where it is whole, else one."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def interval(row: pd.Series) -> str:
    """The 95% interval of a correlation row."""
    return "undefined" if pd.isna(row["ci_low"]) else f"{percent(row['ci_low'])} to {percent(row['ci_high'])}"


def span(row: pd.Series, name: str, show: Callable[[float], str]) -> str:
    """The interval in `{name}_low` and `{name}_high` of a row; `undefined` where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "undefined" if pd.isna(low) else f"{show(low)} to {show(high)}"


def evidence(path: str, rows: str, folder: str = "results/") -> str:
    """A footnote that says where the numbers before it come from: a file under `folder`, and which of its rows."""
    return f"{_OPEN}`{folder}{path}`: {rows}{_CLOSE}"


def number_footnotes(text: str) -> str:
    """Number the footnotes in the order of their appearance, and list them at the end.

    The same text has one number; footnotes that follow each other directly become one.
    """
    numbers: dict[str, int] = {}

    def mark(match: re.Match[str]) -> str:
        return f"[^{numbers.setdefault(match[1].replace(_CLOSE + _OPEN, '; '), len(numbers) + 1)}]"

    marked = re.sub(f"{_OPEN}(.*?){_CLOSE}(?!{_OPEN})", mark, text)
    notes = "\n".join(f"[^{number}]: {note}" for note, number in numbers.items())
    return f"{marked}\n\n{notes}" if notes else marked


def figure(name: str, caption: str) -> str:
    """A figure of the study, by its name without ending."""
    return f"![{caption}](figures/{name}.png)"


def table(rows: list[dict[str, object]]) -> str:
    """A table with a column per key. A row's `evidence`, if any, is a footnote of its first cell, not a column."""
    if not rows:
        return "Nothing to tabulate."
    head = [key for key in rows[0] if key != "evidence"]
    body = [[str(row[key]) for key in head] for row in rows]
    for cells, row in zip(body, rows, strict=True):
        cells[0] += str(row.get("evidence", ""))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def source(*paths: str) -> str:
    """The files a section reads."""
    return "Source: " + ", ".join(f"`results/{path}`" for path in paths) + "."


def has(verdict: Verdict) -> str:
    """The verdict on sinks with its reason."""
    start = {True: "has sinks", False: "has no sinks", None: "cannot be judged"}[verdict.holds]
    return f"{start}: {verdict.reason}"


def holds(verdict: Verdict) -> str:
    return {True: "holds", False: "does not hold", None: "cannot be tested"}[verdict.holds]


def pays(verdict: Verdict) -> str:
    return {True: "pays", False: "does not pay", None: "was not possible"}[verdict.holds]
