"""What a capture costs: ours beside plain SDPA, eager attention with its maps, and TransformerLens's pattern cache.

    python benchmarks/capture.py                      # writes benchmarks/capture_<shape>_<device>.csv and .png

Same weights and tokens for all, each run in a process of its own, methods in turn within every round. `seconds` is
the median of up to three passes after a warm-up (fewer where one takes long); `extra_mb` is the peak beyond what the
loaded model held. Eager attention and TransformerLens are left out where their maps would not fit. TransformerLens is
measured where it is installed (`pip install transformer-lens`).
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

SHAPES = {
    "135m": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    ),
    "1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
    ),
}
_PASSES, _SECONDS_PER_PROCESS = 3, 10
METHODS = ["sinkstudy", "norms", "positions", "sdpa", "eager", "transformer_lens"]
OURS = ("sinkstudy", "norms", "positions")  # Each measures more than the one before it.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, default=16, help="skip runs whose maps alone would need more")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        method, n = arguments.worker.split(":")
        print(json.dumps(measure(method, int(n), arguments)))
        return
    rows = [row for n in arguments.lengths for row in rounds(n, arguments)]
    table = summarize(pd.DataFrame(rows))
    print(table.to_string(index=False))
    stem = arguments.out / f"capture_{arguments.shape}_{arguments.device}"
    if stem.with_suffix(".csv").exists():  # lengths measured before stay
        earlier = pd.read_csv(stem.with_suffix(".csv"))
        kept = earlier[~earlier["n_tokens"].isin(arguments.lengths)]
        table = pd.concat([kept, table]).sort_values("n_tokens", kind="stable")
    table.to_csv(stem.with_suffix(".csv"), index=False, float_format="%.4g")
    draw(table, stem.with_suffix(".png"))


def rounds(n: int, arguments: argparse.Namespace) -> list[dict]:
    """Every method once per round, so that the machine's drift meets all alike."""
    shape = SHAPES[arguments.shape]
    maps_gb = shape["num_hidden_layers"] * shape["num_attention_heads"] * n * n * 4 / 1e9
    methods = [m for m in arguments.methods if m in (*OURS, "sdpa") or maps_gb <= arguments.memory_gb]
    if "transformer_lens" in methods and importlib.util.find_spec("transformer_lens") is None:
        methods.remove("transformer_lens")
    rows = []
    for turn in range(arguments.rounds):
        for method in methods:
            command = [sys.executable, __file__, "--worker", f"{method}:{n}", "--shape", arguments.shape]
            command += ["--dtype", arguments.dtype, "--device", arguments.device]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{method} at {n} tokens failed:\n{done.stderr}")
            rows.append({"n_tokens": n, "method": method, "round": turn} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def measure(method: str, n: int, arguments: argparse.Namespace) -> dict:
    """One process's share: build the model, warm up, run once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sinkstudy.models.allocator import keep_freed_memory

    torch.manual_seed(0)
    shape = SHAPES[arguments.shape]
    config = LlamaConfig(vocab_size=4096, max_position_embeddings=65536, **shape)
    model = LlamaForCausalLM(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()
    keep_freed_memory()
    ids = torch.randint(4096, (1, n), generator=torch.Generator().manual_seed(1)).to(arguments.device)
    cuda = arguments.device == "cuda"
    with torch.inference_mode(), RUNNERS[method](model) as run:
        run(ids[:, :64])
        if cuda:
            run(ids)  # kernels for this length are chosen and compiled on first use
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
        if not cuda:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        seconds = []
        while len(seconds) < _PASSES and sum(seconds) < _SECONDS_PER_PROCESS:
            start = time.perf_counter()
            run(ids)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {"seconds": float(np.median(seconds)), "extra_mb": (peak - before) / 1e6}


# Each runner yields a function for one pass. It prepares the model once for all passes, as a job of the study does.
@contextmanager
def run_sinkstudy(model):
    from sinkstudy.capture import watched

    with watched(model) as forward:
        yield lambda ids: forward(ids, lambda layer, masses: masses.keys.cpu())


@contextmanager
def run_norms(model):
    from sinkstudy.capture import watched

    with watched(model, norms=True) as forward:
        yield lambda ids: forward(ids, lambda layer, masses: masses.keys.cpu())


@contextmanager
def run_positions(model):
    import torch

    from sinkstudy.capture import watched

    with watched(model, norms=True) as forward:
        yield lambda ids: forward(
            ids, lambda layer, masses: masses.received.cpu(), counted=torch.ones_like(ids, dtype=torch.bool)
        )


@contextmanager
def run_sdpa(model):
    model.set_attn_implementation("sdpa")
    yield lambda ids: model.base_model(ids, use_cache=False)


@contextmanager
def run_eager(model):
    model.set_attn_implementation("eager")
    yield lambda ids: model.base_model(ids, use_cache=False, output_attentions=True)


@contextmanager
def run_transformer_lens(model):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    # The bridge asks for a name and a tokenizer even where it is given a model; any local ones do.
    folder = str(Path(__file__).parent.parent / "models/reference")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer)
    yield lambda ids: bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))


RUNNERS = {
    "sinkstudy": run_sinkstudy,
    "norms": run_norms,
    "positions": run_positions,
    "sdpa": run_sdpa,
    "eager": run_eager,
    "transformer_lens": run_transformer_lens,
}


def resident(field: str) -> int:
    """Current (VmRSS) or peak (VmHWM) resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Medians over rounds, and ratios to plain SDPA taken round by round."""
    sdpa = runs[runs["method"] == "sdpa"].set_index(["n_tokens", "round"])["seconds"]
    runs["vs_sdpa"] = (
        runs["seconds"].to_numpy() / sdpa.loc[list(zip(runs["n_tokens"], runs["round"], strict=True))].to_numpy()
    )
    grouped = runs.groupby(["n_tokens", "method"], sort=False)
    table = grouped.agg(
        seconds=("seconds", "median"),
        seconds_low=("seconds", "min"),
        seconds_high=("seconds", "max"),
        time_vs_sdpa=("vs_sdpa", "median"),
        extra_mb=("extra_mb", "median"),
        rounds=("round", "nunique"),
    ).reset_index()
    eager = table[table["method"] == "eager"].set_index("n_tokens")
    table["time_vs_eager"] = table["seconds"] / eager["seconds"].reindex(table["n_tokens"]).to_numpy()
    table["memory_vs_eager"] = table["extra_mb"] / eager["extra_mb"].reindex(table["n_tokens"]).to_numpy()
    return table


def draw(table: pd.DataFrame, path: Path) -> None:
    from sinkstudy.figures.style import COLOURS, DASHES, MARKERS, new_figure, styled

    @styled
    def figure():
        drawn, axes = new_figure(6.8, 2.8, columns=2)
        lengths = sorted(table["n_tokens"].unique())
        labels = {"seconds": "time per pass (s)", "extra_mb": "memory beyond the model (MB)"}
        for ax, (column, label) in zip(axes, labels.items(), strict=True):
            for i, (method, part) in enumerate(table.groupby("method", sort=False)):
                values = np.maximum(part[column], 1e-3)
                ax.plot(
                    part["n_tokens"], values, color=COLOURS[i], linestyle=DASHES[i], marker=MARKERS[i], label=method
                )
            ax.set(xscale="log", yscale="log", xlabel="prompt length (tokens)", ylabel=label)
            ax.set_xticks(lengths, [str(n) for n in lengths])
            ax.minorticks_off()
            ax.grid(alpha=0.25, linewidth=0.5)
        axes[0].legend()
        return drawn

    figure().savefig(path, dpi=150)


if __name__ == "__main__":
    main()
