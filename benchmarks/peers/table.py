"""The rows of both environments as one table, and its figure."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkstudy.errors import StudyError
from sinkstudy.evaluation.retrieval import DEPTHS
from sinkstudy.figures.style import COLOURS, DASHES, MARKERS, NULL_STYLE, new_figure, styled
from sinkstudy.stats.speedups import speedups

KEY = ["environment", "n_tokens", "method", "level"]
_WHOLE = "prefill attends to everything, and the cache shrinks after it: no prefill time is saved"
NOTES = {
    "sdpa": "the unmodified model",
    "sdpa again": "the same timed twice: what it gains over itself is noise",
    "budget plan": "made for long prompts: chosen heads see sinks and a window in prefill and decoding",
    "StreamingLLM": "made for endless streams of which only recent tokens matter; positions as they were, kvpress's "
    f"default; {_WHOLE}",
    "SnapKV": f"made for prompts that end in the question, which shows it what to keep; {_WHOLE}",
    "DuoAttention": "made for head patterns trained on retrieval, here scored on the fly, which kvpress calls "
    "experimental; kvpress masks keys in decoding only: no prefill time and no byte of the cache is saved",
}
# Perplexities of the unmodified model in the two environments may differ by this share, which rounding explains.
_AGREES = 1e-3


def timing_rows(samples: pd.DataFrame) -> pd.DataFrame:
    """Speed over SDPA of the same environment and process, with 95% intervals, from seconds per round (`prefill`,
    `decode`)."""
    rows = []
    for _, cell in samples.groupby(KEY[:2], sort=False):
        found = cell.drop_duplicates(KEY)[KEY].reset_index(drop=True)
        for phase in ("prefill", "decode"):
            seconds = cell.pivot(index="round", columns=["method", "level"], values=phase)
            seconds = seconds[list(zip(found["method"], found["level"], strict=True))]
            result = speedups(seconds.to_numpy(), found.index[found["method"] == "sdpa"][0])
            factor = np.where(found["method"] == "sdpa", 1, result.factor)
            ends = {"": result.ratio, "_low": result.ratio / factor, "_high": result.ratio * factor}
            found = found.assign(**{f"{phase}_vs_sdpa{end}": values for end, values in ends.items()})
            found[f"{phase}_s"] = seconds.median().to_numpy()
        rows.append(found.assign(rounds=len(seconds)))
    return pd.concat(rows, ignore_index=True)


def merged(earlier: pd.DataFrame, made: pd.DataFrame) -> pd.DataFrame:
    """`made` over what was measured before: of a row that both have, columns that were not measured anew stay."""
    table = made if earlier.empty else made.set_index(KEY).combine_first(earlier.set_index(KEY)).reset_index()
    measures = dict.fromkeys(name for name in (*earlier, *made) if name not in (*KEY, "note"))
    table = table[[*KEY, *measures]].assign(
        note=table["method"].map(NOTES), place=table["method"].map(list(NOTES).index)
    )
    return table.sort_values(["n_tokens", "place", "level", "environment"], ignore_index=True).drop(columns="place")


def check_yardstick(table: pd.DataFrame) -> None:
    """Raises StudyError where the unmodified model reads differently in the two environments."""
    for n, cell in table[table["method"] == "sdpa"].groupby("n_tokens"):
        ppl = cell["perplexity"].dropna()
        if len(ppl) and np.ptp(ppl) > _AGREES * ppl.min():
            raise StudyError(
                f"peers: at {n} tokens the unmodified model's perplexity is {ppl.min():.5g} in one environment and "
                f"{ppl.max():.5g} in the other, so their rows cannot stand side by side."
            )


@styled
def figure(table: pd.DataFrame) -> Figure:
    """What each method costs and gains over the share of keys and values that it attends to, as far as it was measured;
    a row per length."""
    lengths = sorted(table["n_tokens"].unique())
    panels = [panel for panel in _PANELS if _value(table, panel[1]).notna().any()]
    drawn, axes = new_figure(1.8 * len(panels), 2.2 * len(lengths) + 0.4, columns=len(panels), rows=len(lengths))
    for row, n in enumerate(lengths):
        cell = table[table["n_tokens"] == n]
        whole = cell.loc[cell["method"] == "sdpa", "kv_mb"].max()
        for ax, (title, measure, lengthy) in zip(axes[row * len(panels) :], panels, strict=False):
            _draw(ax, cell.assign(x=cell["kv_read_mb"] / whole, y=_value(cell, measure)), measure)
            ax.set_title(title if row == 0 else "")
            ax.set_yscale("log" if lengthy else "linear")
        axes[row * len(panels)].set_ylabel(f"{n:,} tokens")
    drawn.supxlabel("share of the keys and values that are attended to in decoding", fontsize=8)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS))
    return drawn


def _draw(ax: Axes, cell: pd.DataFrame, measure: str) -> None:
    compared = cell[cell["level"] > 0]
    for i, method in enumerate(m for m in NOTES if m in set(compared["method"])):
        part = compared[compared["method"] == method].dropna(subset=["x", "y"]).sort_values("x")
        style = {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markersize": 4}
        ax.plot(part["x"], part["y"], label=method, **style)
        if f"{measure}_low" in part:
            ax.vlines(part["x"], part[f"{measure}_low"], part[f"{measure}_high"], color=COLOURS[i], linewidth=1)
    if measure != "kl":
        ax.axhline(cell.loc[cell["method"] == "sdpa", "y"].mean(), **NULL_STYLE)
    ax.grid(alpha=0.25, linewidth=0.5)


_PANELS = (
    ("KL (nats per token)", "kl", True),
    ("log-prob. of the key", "log_prob", False),
    ("asked in the prompt", "log_prob_in_prompt", False),
    ("prefill, × SDPA", "prefill_vs_sdpa", False),
    ("decoding, × SDPA", "decode_vs_sdpa", False),
)


def _value(cell: pd.DataFrame, measure: str) -> pd.Series:
    """A measure of every row, means over depths of what is asked for."""
    end = measure.removeprefix("log_prob") if measure.startswith("log_prob") else None
    names = [measure] if end is None else [f"log_prob_{depth:g}{end}" for depth in DEPTHS]
    return cell.reindex(columns=names).mean(axis=1)
