"""Measured speed of optimized attention beside its baselines, and what it costs in quality."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter

from sinkstudy.figures.style import COLOURS, DASHES, MARKERS, PAGE, new_figure, styled
from sinkstudy.stats.pareto import pareto_front

_PHASES = {"prefill": "prefill", "decode": "decoding"}
_LEAST_KL = 1e-8  # nats per token; what lies below, zero included, is drawn there


@styled
def timing_figure(benchmark: pd.DataFrame) -> Figure:
    """Speedup over SDPA against prompt length (smallest batch): a row per phase, a column per policy.

    Short bars mark the ceiling of each point: its speedup if all that is left out were saved perfectly.
    """
    rows = benchmark[benchmark["batch"] == benchmark["batch"].min()]
    phases = [phase for phase in _PHASES if phase in set(rows["phase"])]
    policies = [policy for policy in dict.fromkeys(rows["policy"]) if policy != "none"] or ["none"]
    strategies = _strategies(rows)
    figure, axes = new_figure(
        PAGE, 0.7 + 1.6 * len(phases), columns=len(policies), rows=len(phases), sharex=True, sharey="row"
    )
    for ax, (phase, policy) in zip(axes, ((p, q) for p in phases for q in policies), strict=True):
        part = rows[(rows["phase"] == phase) & rows["policy"].isin([policy, "none"]) & (rows["strategy"] != "sdpa")]
        for strategy, points in part.groupby("strategy", sort=False):
            points, style = points.sort_values("n_tokens"), _style(strategies.index(strategy))
            ax.plot(points["n_tokens"], points["speedup_vs_sdpa"], **style)
            if strategy != "eager":
                mark = style | {"marker": "_", "markersize": 9, "linestyle": "none"}
                ax.plot(points["n_tokens"], points["ceiling"], **mark)
        ax.axhline(1.0, color="0.35", linewidth=0.8)
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(sorted(rows["n_tokens"].unique()), [str(n) for n in sorted(rows["n_tokens"].unique())])
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))  # decades are too far apart for speedups
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        ax.grid(alpha=0.25, linewidth=0.5)
        if phase == phases[0] and policy != "none":
            ax.set_title(f"policy {policy}")
        if phase == phases[-1]:
            ax.set_xlabel("context (tokens)")
        if policy == policies[0]:
            ax.set_ylabel(f"speedup over SDPA\n{_PHASES[phase]}")
    ceiling = Line2D([], [], color="0.35", marker="_", markersize=9, linestyle="none", label="ceiling")
    _legend(figure, strategies, ceiling)
    figure.suptitle(_where(rows))
    return figure


@styled
def tradeoff_figure(benchmark: pd.DataFrame) -> Figure:
    """Prefill speedup over SDPA against KL divergence (smallest batch), a panel per length at which heads are replaced.

    A line joins the Pareto front, points that no other one beats in both. SDPA itself is at the left end, at no cost
    and a speedup of 1.
    """
    rows = benchmark[(benchmark["batch"] == benchmark["batch"].min()) & (benchmark["phase"] == "prefill")]
    strategies = _strategies(rows)
    policies = [policy for policy in dict.fromkeys(rows["policy"]) if policy != "none"]
    replacing = rows[rows["heads_replaced"] > 0]
    lengths = sorted((replacing if len(replacing) else rows)["n_tokens"].unique())
    figure, axes = new_figure(PAGE, 2.7, columns=len(lengths), sharex=True, sharey=True)
    for ax, n in zip(axes, lengths, strict=True):
        part = rows[(rows["n_tokens"] == n) & ((rows["heads_replaced"] > 0) | (rows["strategy"] == "sdpa"))]
        front = pareto_front(part).sort_values("kl")
        ax.plot(front["kl"].clip(lower=_LEAST_KL), front["speedup_vs_sdpa"], color="0.6", linewidth=1.0, zorder=1)
        for _, row in part.iterrows():
            if row["strategy"] == "sdpa":
                look = {"color": "black", "marker": "*", "s": 40}
            else:
                colour, i = COLOURS[strategies.index(row["strategy"]) % len(COLOURS)], policies.index(row["policy"])
                # Policies that chose the same heads lie on one point: the earlier ones show behind the later.
                size = 14 + 45 * (len(policies) - 1 - i)
                look = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "s": size, "edgecolors": "white"}
                look["linewidths"] = 0.4
            ax.scatter(max(row["kl"], _LEAST_KL), row["speedup_vs_sdpa"], zorder=2, **look)
        ax.axhline(1.0, color="0.35", linewidth=0.8, zorder=0)
        ax.set(xscale="log", xlabel="KL (nats per token)", title=f"{n} tokens")
        ax.set_xticks([1e-8, 1e-5, 1e-2], ["≤1e-8", "1e-5", "1e-2"])
        ax.minorticks_off()
        ax.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("prefill speedup over SDPA")
    marks = [Line2D([], [], color="black", marker="*", linestyle="none", label="sdpa")]
    for i, strategy in enumerate(strategies):
        if strategy != "eager":
            marks.append(Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="o", linestyle="none", label=strategy))
    for i, policy in enumerate(policies):
        marks.append(
            Line2D([], [], color="0.5", marker=MARKERS[i % len(MARKERS)], linestyle="none", label=f"policy {policy}")
        )
    marks.append(Line2D([], [], color="0.6", linewidth=1.0, label="Pareto front"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4)
    figure.suptitle(_where(rows))
    return figure


def _strategies(rows: pd.DataFrame) -> list[str]:
    """Replacing strategies first, so that each keeps its colour; eager last."""
    found = [s for s in dict.fromkeys(rows["strategy"]) if s not in ("sdpa", "eager")]
    return [*found, "eager"]


def _style(i: int) -> dict[str, object]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 3.5,
    }


def _legend(figure: Figure, strategies: list[str], *others: Line2D) -> None:
    lines = [Line2D([], [], label=strategy, **_style(i)) for i, strategy in enumerate(strategies)]
    figure.legend(handles=[*lines, *others], loc="outside lower center", ncols=3)


def _where(rows: pd.DataFrame) -> str:
    return f"{rows['model'].iloc[0]} on {rows['device'].iloc[0]}, batch {rows['batch'].iloc[0]}"
