"""Measured speed of optimized attention beside its baselines, and what it costs in quality."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from sinkstudy.figures import messages
from sinkstudy.figures.style import COLOURS, DASHES, MARKERS, PAGE, headline, new_figure, nothing_figure, styled
from sinkstudy.stats.speedups import pareto_front, with_sure_speedup

_NOT_TIMED = ("not timed: its layers stay on disk", "a timing would be one of the disk")
_WIDE = 1.35  # the points of one length lie within this factor of it
_AGAIN = {"color": "0.85", "linewidth": 0, "zorder": 0}
_LEAST_KL = 1e-8  # nats per token; what lies below, zero included, is drawn there


@styled
def timing_figure(benchmark: pd.DataFrame) -> Figure:
    """Speedup over SDPA against prompt length (smallest batch): a row per phase, a column per policy, 95% intervals.

    Grey bars: the interval of SDPA's speedup over itself when it is timed twice. A point that cannot be told from it is
    hollow (see `with_noise`), and no line leads to or from it. Short bars mark the ceiling of each point: its speedup
    if all that is left out were saved perfectly.
    """
    if benchmark.empty:
        return nothing_figure(*_NOT_TIMED)
    rows = with_noise(benchmark[benchmark["batch"] == benchmark["batch"].min()])
    phases = [phase for phase in messages.PHASES if phase in set(rows["phase"])]
    policies = list(dict.fromkeys(rows.loc[rows["heads_replaced"] > 0, "policy"])) or ["none"]
    strategies, lengths = _strategies(rows), sorted(rows["n_tokens"].unique())
    figure, axes = new_figure(
        PAGE, 0.9 + 1.6 * len(phases), columns=len(policies), rows=len(phases), sharex=True, sharey="row"
    )
    for ax, (phase, policy) in zip(axes, ((p, q) for p in phases for q in policies), strict=True):
        part = rows[rows["phase"] == phase]
        again = part[part["policy"] == "again"]
        ax.bar(
            again["n_tokens"] / _WIDE,
            again["speedup_high"] - again["speedup_low"],
            again["n_tokens"] * (_WIDE - 1 / _WIDE),
            again["speedup_low"],
            align="edge",
            **_AGAIN,
        )
        for strategy, points in part[part["policy"].isin([policy, "none"])].groupby("strategy", sort=False):
            if strategy != "sdpa":
                _draw_points(ax, points.sort_values("n_tokens"), strategies.index(strategy), len(strategies))
        ax.axhline(1.0, color="0.35", linewidth=0.8)
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(lengths, [str(n) for n in lengths])
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        ax.grid(axis="y", alpha=0.25, linewidth=0.5)
        if phase == phases[0] and policy != "none":
            ax.set_title(f"policy {policy}")
        if phase == phases[-1]:
            ax.set_xlabel("context (tokens)")
        if policy == policies[0]:
            ax.set_ylabel(f"speedup over SDPA\n{messages.PHASES[phase]}")
    for ax in axes:
        low, high = ax.get_ylim()
        few = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])  # decades are too far apart for most speedups
        ax.yaxis.set_major_locator(few if high < 8 * low else LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ceiling = Line2D([], [], color="0.35", marker="_", markersize=9, linestyle="none", label="ceiling")
    hollow = Line2D([], [], color="0.35", marker="o", mfc="white", linestyle="none", label="not told from noise")
    _legend(figure, strategies, ceiling, hollow, Patch(**_AGAIN, label="SDPA timed twice"))
    headline(figure, messages.timing(rows), f"{_where(rows)}; bars: 95% intervals")
    return figure


def _draw_points(ax: Axes, points: pd.DataFrame, i: int, strategies: int) -> None:
    """One strategy at all lengths, side by side with the others."""
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    x = points["n_tokens"].to_numpy() * _WIDE ** (2 * (i + 0.5) / strategies - 1)
    speed, noise = points["speedup_vs_sdpa"].to_numpy(), points["is_noise"].to_numpy()
    for k in range(len(points) - 1):
        if not noise[k : k + 2].any():
            ax.plot(x[k : k + 2], speed[k : k + 2], color=colour, linestyle=DASHES[i % len(DASHES)], linewidth=1.0)
    reach = np.abs(points[["speedup_low", "speedup_high"]].to_numpy().T - speed)
    ax.errorbar(x, speed, reach, color=colour, linestyle="none", elinewidth=0.8)
    for hollow in (False, True):
        look = {"color": colour, "marker": marker, "markersize": 3.5, "linestyle": "none"}
        ax.plot(x[noise == hollow], speed[noise == hollow], **look, mfc="white" if hollow else colour)
    if (points["heads_replaced"] > 0).any():
        ax.plot(x, points["ceiling"], color=colour, marker="_", markersize=7, linestyle="none")


@styled
def tradeoff_figure(benchmark: pd.DataFrame) -> Figure:
    """Prefill speedup over SDPA against KL divergence (smallest batch), a panel per length at which heads are replaced.

    A line joins the Pareto front, points that no other one beats in both, of those that can be told from SDPA timed
    twice (grey); the others are hollow. SDPA itself is at the left end, at no cost and a speedup of 1.
    """
    if benchmark.empty:
        return nothing_figure(*_NOT_TIMED)
    rows = with_noise(benchmark[benchmark["batch"] == benchmark["batch"].min()])
    rows = rows[rows["phase"] == "prefill"]
    strategies = _strategies(rows)
    policies = list(dict.fromkeys(rows.loc[rows["heads_replaced"] > 0, "policy"]))
    replacing = rows[rows["heads_replaced"] > 0]
    lengths = sorted((replacing if len(replacing) else rows)["n_tokens"].unique())
    figure, axes = new_figure(PAGE, 2.9, columns=len(lengths), sharex=True, sharey=True)
    for ax, n in zip(axes, lengths, strict=True):
        part = rows[rows["n_tokens"] == n]
        for _, again in part[part["policy"] == "again"].iterrows():
            ax.axhspan(again["speedup_low"], again["speedup_high"], **_AGAIN)
        part = part[(part["heads_replaced"] > 0) | ((part["strategy"] == "sdpa") & (part["policy"] == "none"))]
        front = pareto_front(part[~part["is_noise"] | (part["strategy"] == "sdpa")]).sort_values("kl")
        ax.plot(front["kl"].clip(lower=_LEAST_KL), front["speedup_vs_sdpa"], color="0.6", linewidth=1.0, zorder=1)
        for _, row in part.iterrows():
            if row["strategy"] == "sdpa":
                look = {"color": "black", "marker": "*", "s": 40}
            else:
                colour, i = COLOURS[strategies.index(row["strategy"]) % len(COLOURS)], policies.index(row["policy"])
                # Policies that chose the same heads lie on one point: the earlier ones show behind the later.
                size = 14 + 45 * (len(policies) - 1 - i)
                filled = {"facecolors": colour, "edgecolors": "white", "linewidths": 0.4}
                hollow = {"facecolors": "white", "edgecolors": colour, "linewidths": 0.8}
                look = {"marker": MARKERS[i % len(MARKERS)], "s": size} | (hollow if row["is_noise"] else filled)
                reach = [[row["speedup_vs_sdpa"] - row["speedup_low"]], [row["speedup_high"] - row["speedup_vs_sdpa"]]]
                at = max(row["kl"], _LEAST_KL), row["speedup_vs_sdpa"]
                ax.errorbar(*at, reach, color=colour, linestyle="none", elinewidth=0.6, zorder=1)
            ax.scatter(max(row["kl"], _LEAST_KL), row["speedup_vs_sdpa"], zorder=2, **look)
        ax.axhline(1.0, color="0.35", linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlabel="KL (nats per token)", title=f"prefill, {n} tokens")
        ax.set_xticks([1e-8, 1e-5, 1e-2], ["≤1e-8", "1e-5", "1e-2"])
        ax.minorticks_off()
        ax.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("speedup over SDPA")
    marks = [Line2D([], [], color="black", marker="*", linestyle="none", label="sdpa")]
    for i, strategy in enumerate(strategies):
        if strategy != "eager":
            marks.append(Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="o", linestyle="none", label=strategy))
    for i, policy in enumerate(policies):
        marks.append(
            Line2D([], [], color="0.5", marker=MARKERS[i % len(MARKERS)], linestyle="none", label=f"policy {policy}")
        )
    marks.append(Line2D([], [], color="0.6", linewidth=1.0, label="Pareto front"))
    marks.append(Line2D([], [], color="0.5", marker="o", mfc="white", linestyle="none", label="not told from noise"))
    marks.append(Patch(**_AGAIN, label="SDPA timed twice"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    headline(figure, messages.tradeoff(rows[rows["n_tokens"].isin(lengths)]), f"{_where(rows)}; bars: 95% intervals")
    return figure


def _strategies(rows: pd.DataFrame) -> list[str]:
    """Replacing strategies first, so that each keeps its colour; eager last."""
    found = [s for s in dict.fromkeys(rows["strategy"]) if s not in ("sdpa", "eager")]
    return [*found, "eager"]


def with_noise(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `is_noise`: whether a row cannot be told from SDPA timed twice in the same cell.

    As in the findings, one of many plans is faster where the lower end of its interval, corrected for their number and
    no more of it than the ceiling allows, lies above the upper end of SDPA's. It is slower where the intervals part.
    """
    cell = ["phase", "n_tokens"]
    again = rows.loc[rows["policy"] == "again", [*cell, "speedup_low", "speedup_high"]].set_index(cell)
    low, high = again.reindex(pd.MultiIndex.from_frame(rows[cell])).to_numpy().T
    plans = max(1, int((rows["heads_replaced"] > 0).sum()))
    credited = with_sure_speedup(rows, plans)["credited"].to_numpy()
    return rows.assign(is_noise=~((credited > high) | (rows["speedup_high"].to_numpy() < low)))


def _legend(figure: Figure, strategies: list[str], *others: Artist) -> None:
    points = [
        Line2D([], [], color=colour, linestyle=dashes, marker=marker, markersize=3.5, label=strategy)
        for strategy, colour, dashes, marker in zip(strategies, cycle(COLOURS), cycle(DASHES), cycle(MARKERS))
    ]
    figure.legend(handles=[*points, *others], loc="outside lower center", ncols=4)


def _where(rows: pd.DataFrame) -> str:
    first, rounds = rows.iloc[0], "medians"
    if "rounds" in rows:
        # Eager attention sits out most rounds where anything else is timed.
        compared = rows[rows["strategy"] != "eager"]
        counted = (rows if compared.empty else compared)["rounds"]
        least, most = counted.min(), counted.max()
        rounds = f"n = {least:.0f} rounds" if least == most else f"n = {least:.0f} to {most:.0f} rounds"
    return f"{first['model']} on {first['device']}, batch {first['batch']}; {rounds}"
