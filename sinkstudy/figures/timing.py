"""Measured speed of optimized attention beside its baselines, and what it costs in quality."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from sinkstudy.figures import messages, style
from sinkstudy.stats.speedups import pareto_front, with_sure_speedup

_NOT_TIMED = ("not timed: its layers stay on disk", "a timing would be one of the disk")
_WIDE = 1.35  # the points of one length lie within this factor of it
_AGAIN = {"color": "0.85", "linewidth": 0, "zorder": 0}
_LEAST_KL = 1e-8  # nats per token; what lies below, zero included, is drawn there


@style.styled
def timing_figure(benchmark: pd.DataFrame) -> Figure:
    """Speedup over SDPA against prompt length (smallest batch): a row per phase, a column per policy, 95% intervals.

    Grey bars: the interval of SDPA's speedup over itself when it is timed twice. A point that cannot be told from it is
    hollow (see `_with_noise`), and no line leads to or from it. Short bars mark the ceiling of each point: its speedup
    if all that is left out were saved perfectly.
    """
    if benchmark.empty:
        return style.nothing_figure(*_NOT_TIMED)
    rows = _with_noise(benchmark[benchmark["batch"] == benchmark["batch"].min()])
    phases = [phase for phase in messages.PHASES if phase in set(rows["phase"])]
    policies = list(rows.loc[rows["heads_replaced"] > 0, "policy"].unique()) or ["none"]
    strategies, lengths = _strategies(rows), sorted(rows["n_tokens"].unique())
    grid = {"columns": len(policies), "rows": len(phases), "sharex": True, "sharey": "row"}
    figure, axes = style.new_figure(style.PAGE, 0.9 + 1.6 * len(phases), **grid)
    for ax, (phase, policy) in zip(axes, ((p, q) for p in phases for q in policies), strict=True):
        part = rows[rows["phase"] == phase]
        again = part[part["policy"] == "again"]
        left, width = again["n_tokens"] / _WIDE, again["n_tokens"] * (_WIDE - 1 / _WIDE)
        height = again["speedup_high"] - again["speedup_low"]
        ax.bar(left, height, width, again["speedup_low"], align="edge", **_AGAIN)
        for strategy, points in part[part["policy"].isin([policy, "none"])].groupby("strategy", sort=False):
            if strategy != "sdpa":
                _draw_points(ax, points.sort_values("n_tokens"), strategies.index(strategy), len(strategies))
        ax.axhline(1.0, color="0.35", linewidth=0.8)
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(lengths, lengths)
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        ax.grid(axis="y", alpha=0.25, linewidth=0.5)
        if phase == phases[0] and policy != "none":
            ax.set_title(f"policy {policy}")
        ax.set(xlabel="context (tokens)", ylabel=f"speedup over SDPA\n{messages.PHASES[phase]}")
        ax.label_outer()
    for ax in axes:
        low, high = ax.get_ylim()
        few = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])  # decades are too far apart for most speedups
        ax.yaxis.set_major_locator(few if high < 8 * low else LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    marks = [
        Line2D([], [], **style.points_style(i) | style.series_style(i), markersize=3.5, label=strategy)
        for i, strategy in enumerate(strategies)
    ]
    marks.append(_mark("ceiling", color="0.35", marker="_", markersize=9))
    marks.append(_mark("not told from noise", color="0.35", marker="o", mfc="white"))
    marks.append(Patch(**_AGAIN, label="SDPA timed twice"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    return style.headline(figure, messages.timing(rows), _details(rows))


def _draw_points(ax: Axes, points: pd.DataFrame, i: int, strategies: int) -> None:
    """One strategy at all lengths, side by side with the others."""
    look = style.points_style(i) | {"markersize": 3.5}
    colour = look["color"]
    x = points["n_tokens"].to_numpy() * _WIDE ** (2 * (i + 0.5) / strategies - 1)
    speed, noise = points["speedup_vs_sdpa"].to_numpy(), points["is_noise"].to_numpy()
    for k in range(len(points) - 1):
        if not noise[k : k + 2].any():
            ax.plot(x[k : k + 2], speed[k : k + 2], **style.series_style(i), linewidth=1.0)
    ax.vlines(x, points["speedup_low"], points["speedup_high"], color=colour, linewidth=0.8)
    ax.plot(x[~noise], speed[~noise], **look)
    ax.plot(x[noise], speed[noise], **look, mfc="white")
    if (points["heads_replaced"] > 0).any():
        ax.plot(x, points["ceiling"], color=colour, marker="_", markersize=7, linestyle="none")


@style.styled
def tradeoff_figure(benchmark: pd.DataFrame) -> Figure:
    """Prefill speedup over SDPA against KL divergence (smallest batch), a panel per length at which heads are replaced.

    A line joins the Pareto front, points that no other one beats in both, of those that can be told from SDPA timed
    twice (grey); the others are hollow. SDPA itself is at the left end, at no cost and a speedup of 1.
    """
    if benchmark.empty:
        return style.nothing_figure(*_NOT_TIMED)
    rows = _with_noise(benchmark[benchmark["batch"] == benchmark["batch"].min()])
    rows = rows[rows["phase"] == "prefill"]
    replacing, strategies = rows[rows["heads_replaced"] > 0], _strategies(rows)
    policies = list(replacing["policy"].unique())
    lengths = sorted((replacing if len(replacing) else rows)["n_tokens"].unique())
    figure, axes = style.new_figure(style.PAGE, 2.9, columns=len(lengths), sharex=True, sharey=True)
    for ax, n in zip(axes, lengths, strict=True):
        part = rows[rows["n_tokens"] == n]
        for _, again in part[part["policy"] == "again"].iterrows():
            ax.axhspan(again["speedup_low"], again["speedup_high"], **_AGAIN)
        plans, sdpa = part[part["heads_replaced"] > 0], part[(part["strategy"] == "sdpa") & (part["policy"] == "none")]
        front = pareto_front(pd.concat([sdpa, plans[~plans["is_noise"]]])).sort_values("kl")
        ax.plot(front["kl"].clip(lower=_LEAST_KL), front["speedup_vs_sdpa"], color="0.6", linewidth=1.0, zorder=1)
        ax.scatter(sdpa["kl"].clip(lower=_LEAST_KL), sdpa["speedup_vs_sdpa"], 40, "black", marker="*", zorder=2)
        for _, row in plans.dropna(subset="speedup_vs_sdpa").iterrows():
            kl, i = max(row["kl"], _LEAST_KL), policies.index(row["policy"])
            colour = style.points_style(strategies.index(row["strategy"]))["color"]
            # Policies that chose the same heads lie on one point: the earlier ones show behind the later.
            look = {"s": 14 + 45 * (len(policies) - 1 - i), "marker": style.points_style(i)["marker"], "zorder": 2}
            face, edge, width = ("white", colour, 0.8) if row["is_noise"] else (colour, "white", 0.4)
            ax.vlines(kl, row["speedup_low"], row["speedup_high"], color=colour, linewidth=0.6, zorder=1)
            ax.scatter(kl, row["speedup_vs_sdpa"], facecolors=face, edgecolors=edge, linewidths=width, **look)
        ax.axhline(1.0, color="0.35", linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlabel="KL (nats per token)", title=f"prefill, {n} tokens")
        ax.set_xticks([1e-8, 1e-5, 1e-2], ["≤1e-8", "1e-5", "1e-2"])
        ax.minorticks_off()
        ax.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("speedup over SDPA")
    marks = [_mark("sdpa", color="black", marker="*")]
    for i, strategy in enumerate(strategies[:-1]):  # Eager attention, the last, is not drawn.
        marks.append(_mark(strategy, color=style.points_style(i)["color"], marker="o"))
    for i, policy in enumerate(policies):
        marks.append(_mark(f"policy {policy}", color="0.5", marker=style.points_style(i)["marker"]))
    marks.append(Line2D([], [], color="0.6", linewidth=1.0, label="Pareto front"))
    marks.append(_mark("not told from noise", color="0.5", marker="o", mfc="white"))
    marks.append(Patch(**_AGAIN, label="SDPA timed twice"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    return style.headline(figure, messages.tradeoff(rows), _details(rows))


def _strategies(rows: pd.DataFrame) -> list[str]:
    """Replacing strategies first, so that each keeps its colour; eager last."""
    return [*(strategy for strategy in rows["strategy"].unique() if strategy not in ("sdpa", "eager")), "eager"]


def _with_noise(rows: pd.DataFrame) -> pd.DataFrame:
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


def _mark(label: str, **look: object) -> Line2D:
    """An entry of a legend, without a line."""
    return Line2D([], [], linestyle="none", label=label, **look)


def _details(rows: pd.DataFrame) -> str:
    first, compared = rows.iloc[0], rows[rows["strategy"] != "eager"]
    # Eager attention sits out most rounds where anything else is timed.
    counted = (rows if compared.empty else compared)["rounds"]
    rounds = " to ".join(f"{n}" for n in dict.fromkeys((counted.min(), counted.max())))
    return f"{first['model']} on {first['device']}, batch {first['batch']}; n = {rounds} rounds; bars: 95% intervals"
