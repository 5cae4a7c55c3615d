"""Replaced heads on layer shapes whose weights cannot be had: speed beside eager and SDPA, and beside the ceiling.

    python benchmarks/attention.py                    # writes benchmarks/attention_<shape>_<device>.csv and .png

Random weights, a few layers, no language-model head. Of every layer the first heads are replaced, in whole KV groups
as far as the fraction allows. Rows measured anew replace those of the same name in the table.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaModel

from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.evaluation.benchmark import measure, prepare
from sinkstudy.evaluation.timing import Rounds
from sinkstudy.evaluation.variants import EAGER, SDPA, Variant
from sinkstudy.figures.style import COLOURS, MARKERS, new_figure, styled

HERE = Path(__file__).parent
SHAPES = {
    "llama-3.2-1b": dict(
        hidden_size=2048, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8, head_dim=64
    ),
    "llama-3.1-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    ),
}
KEY = ["phase", "n_tokens", "batch", "strategy", "policy", "depth"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--layers", type=int, default=2, help="at least 2, for reuse of the first one's pattern")
    parser.add_argument("--phases", nargs="+", default=["prefill", "decode"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 128, 512, 1024, 2048, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.23, 0.50, 0.71])
    parser.add_argument("--strategies", nargs="+", default=["first_value", "first_value_mean", "sink_window", "reuse"])
    parser.add_argument("--depths", nargs="+", default=["projections", "attention"])
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--max-tokens", type=int, default=4096, help="skip cells of more tokens in all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, num_hidden_layers=arguments.layers, max_position_embeddings=65536, **SHAPES[arguments.shape]
    )
    model = LlamaModel(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()
    path = arguments.out / f"attention_{arguments.shape}_{arguments.device}.csv"
    for phase in arguments.phases:
        for n in arguments.lengths:
            for batch in arguments.batches:
                if n * batch <= arguments.max_tokens:
                    rows = [{"layers": arguments.layers} | row for row in cell(model, arguments, phase, n, batch)]
                    draw(save(pd.DataFrame(rows), path), path.with_suffix(".png"))
                    print(pd.DataFrame(rows)[SHOWN].to_string(index=False), flush=True)


SHOWN = [*KEY, "median_s", "speedup_vs_sdpa", "speedup_vs_eager", "ceiling", "speedup_of_ceiling", "kv_cache_mb"]


def cell(model: LlamaModel, arguments: argparse.Namespace, phase: str, n: int, batch: int) -> list[dict]:
    variants = [SDPA] if arguments.no_eager else [EAGER, SDPA]
    for fraction in arguments.fractions:
        for strategy in arguments.strategies:
            plan = plan_of(model.config, fraction, strategy)
            variants += [Variant(strategy, plan.policy, plan, depth) for depth in arguments.depths]
    inputs = torch.randint(512, (batch, n), generator=torch.Generator().manual_seed(n)).to(model.device)
    prepared = prepare(model, inputs, variants)
    return measure(model, arguments.shape, inputs, prepared, phase, Rounds(arguments.repeats))


def plan_of(config: LlamaConfig, fraction: float, strategy: str) -> Plan:
    """The first heads of every layer, but for `reuse` of the first layer, whose pattern it needs."""
    heads = range(round(fraction * config.num_attention_heads))
    layers = range(1 if strategy == "reuse" else 0, config.num_hidden_layers)
    weights = {layer: dict.fromkeys(heads, 0.001) for layer in layers}
    named = f"{100 * fraction:.0f}% of heads"
    return Plan(heads=dict.fromkeys(layers, heads), strategy=strategy, rest_weight=weights, policy=named)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Measured speedup over SDPA (points) beside its ceiling (bars) at half the heads, batch 1."""
    part = table[(table["batch"] == 1) & (table["policy"] == "50% of heads")]
    phases = list(dict.fromkeys(part["phase"]))

    @styled
    def figure() -> Figure:
        drawn, axes = new_figure(7.2, 2.8, columns=len(phases))
        for ax, phase in zip(axes, phases, strict=True):
            lines = part[part["phase"] == phase].groupby(["strategy", "depth"], sort=False)
            for (strategy, depth), points in lines:
                i = [*STRATEGIES].index(strategy)
                look = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 3.5}
                look["linestyle"] = "-" if depth == "projections" else ":"
                ax.plot(points["n_tokens"], points["speedup_vs_sdpa"], label=f"{strategy}, {depth}", **look)
                bars = look | {"marker": "_", "markersize": 10, "linestyle": "none"}
                ax.plot(points["n_tokens"], points["ceiling"], **bars)
            ax.axhline(1.0, color="0.35", linewidth=0.8)
            lengths = sorted(part.loc[part["phase"] == phase, "n_tokens"].unique())
            ax.set(xscale="log", title=phase, xlabel="tokens")
            crowded = [n < 1.4 * before for before, n in zip([0, *lengths], lengths, strict=False)]
            labels = ["" if close else str(n) for n, close in zip(lengths, crowded, strict=True)]
            ax.set_xticks(lengths, labels, rotation=60)
            ax.minorticks_off()
            ax.grid(alpha=0.25, linewidth=0.5)
        axes[0].set_ylabel("speedup over SDPA\n(bars: ceiling)")
        drawn.align_xlabels()
        handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        drawn.suptitle(f"{table['model'].iloc[0]} layer shape, {table['device'].iloc[0]}, half of the heads replaced")
        return drawn

    figure().savefig(path, dpi=150)


def save(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Put rows into the table, over those they measure anew."""
    if path.exists():
        old = pd.read_csv(path).round({"n_tokens": 0})
        known = pd.MultiIndex.from_frame(rows[KEY])
        rows = pd.concat([old[~pd.MultiIndex.from_frame(old[KEY]).isin(known)], rows])
    rows = rows.sort_values(["phase", "batch", "n_tokens"], kind="stable")
    rows.to_csv(path, index=False, float_format="%.5g")
    return rows


if __name__ == "__main__":
    main()
