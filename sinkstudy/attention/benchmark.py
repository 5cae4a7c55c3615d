"""Timing a model under plans, side by side with eager attention and SDPA."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from tqdm import tqdm
from transformers import PreTrainedModel

from sinkstudy.attention.ceiling import prefill_ceiling
from sinkstudy.attention.optimize import optimized
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.quality import compare
from sinkstudy.errors import StudyError

# A sample shorter than this is dominated by the clock and the scheduler, so several passes make one sample.
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Variant:
    """One way to run the model; `plan` None means the unmodified model under attention implementation `strategy`."""

    strategy: str
    policy: str
    plan: Plan | None


def benchmark_table(
    model: PreTrainedModel, name: str, token_ids: list[int], plans: list[Plan], grid: dict
) -> pd.DataFrame:
    """Prefill times and quality for every length, batch, strategy and policy.

    `token_ids`: held-out text; a batch of n tokens takes consecutive windows of it. `grid` holds lengths, batches,
    strategies and repeats. All variants take turns within every repeat, after a warm-up that is not counted.
    Lengths beyond the model's context or the text are left out; raises StudyError where none remains. A model that
    cannot run on SDPA has one row per cell, `eager`, and no comparison with it.
    """
    variants = [Variant("eager", "none", None)]
    if _runs_on_sdpa(model):
        variants.append(Variant("sdpa", "none", None))
        variants += [Variant(s, p.policy, replace(p, strategy=s)) for p in plans for s in grid["strategies"]]
    rows = []
    lengths = usable_lengths(model, name, len(token_ids), grid["lengths"])
    cells = [(n, batch) for n in lengths for batch in grid["batches"]]
    for n, batch in tqdm(cells, desc=f"benchmark {name}", unit="cell"):
        inputs = windows(token_ids, n, batch).to(model.device)
        rows += _cell(model, name, inputs, variants, grid["repeats"])
    return pd.DataFrame(rows)


def _runs_on_sdpa(model: PreTrainedModel) -> bool:
    """Whether SDPA computes this model's attention: not where it attends by itself, caps scores or learns sinks."""
    if not model._can_set_attn_implementation():
        return False
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("sdpa")
        with torch.inference_mode():
            model(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except ValueError:  # what Transformers raises for attention that SDPA does not cover
        return False
    finally:
        model.set_attn_implementation(before)
    return True


def usable_lengths(model: PreTrainedModel, name: str, text_tokens: int, lengths: list[int]) -> list[int]:
    """The lengths that both the model's context and the text allow; what is left out is said on stderr."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or text_tokens
    limit = min(context, text_tokens)
    usable = [n for n in lengths if n <= limit]
    if not usable:
        raise StudyError(
            f"benchmark: {name!r} takes {context} tokens and the text has {text_tokens}, fewer than the shortest of "
            f"benchmark.lengths {lengths}; add a shorter length or lengthen the text."
        )
    if len(usable) < len(lengths):
        left_out = ", ".join(str(n) for n in lengths if n > limit)
        print(f"benchmark {name}: left out lengths {left_out}; context {context}, text {text_tokens}", file=sys.stderr)
    return usable


def windows(token_ids: list[int], n: int, batch: int) -> Tensor:
    """`batch` windows of `n` tokens, (batch, query), evenly spread over the text; each keeps the text's first token,
    which is where a model that was given BOS keeps it."""
    starts = np.linspace(1, len(token_ids) - n + 1, batch).astype(int)
    return torch.tensor([[token_ids[0], *token_ids[s : s + n - 1]] for s in starts])


def _cell(model: PreTrainedModel, name: str, inputs: Tensor, variants: list[Variant], repeats: int) -> list[dict]:
    batch, n = inputs.shape
    replaced, logits, passes = [], [], []
    for variant in variants:
        with _running(model, variant) as run, torch.inference_mode():
            logits.append(model(inputs, use_cache=False).logits)
            replaced.append(_replaced(model, variant, run))
            warm = _seconds(lambda: model(inputs, use_cache=False), model.device)
            passes.append(max(1, math.ceil(_SAMPLE_SECONDS / warm)))
    samples = np.empty((repeats, len(variants)))
    for repeat in range(repeats):
        for i, variant in enumerate(variants):
            with _running(model, variant), torch.inference_mode():

                def many(count: int = passes[i]) -> None:
                    for _ in range(count):
                        model(inputs, use_cache=False)

                samples[repeat, i] = _seconds(many, model.device) / passes[i]
    median = np.median(samples, axis=0)
    iqr = np.subtract(*np.quantile(samples, [0.75, 0.25], axis=0))
    heads = model.config.get_text_config().num_hidden_layers * model.config.get_text_config().num_attention_heads
    names = [variant.strategy for variant in variants]
    unmodified = names.index("sdpa") if "sdpa" in names else 0
    sdpa = median[unmodified] if "sdpa" in names else math.nan
    rows = []
    for i, variant in enumerate(variants):
        quality = compare(logits[unmodified], logits[i], inputs)
        rows.append(
            {
                "model": name,
                "phase": "prefill",
                "n_tokens": n,
                "batch": batch,
                "strategy": variant.strategy,
                "policy": variant.policy,
                "heads_replaced": replaced[i],
                "head_fraction": replaced[i] / heads,
                "median_s": median[i],
                "iqr_s": iqr[i],
                "speedup_vs_sdpa": sdpa / median[i],
                "speedup_vs_eager": median[0] / median[i],
                "ceiling": prefill_ceiling(model, n, replaced[i], variant.strategy) if variant.plan else 1.0,
                "peak_mb": _peak_mb(model, inputs, variant),
                "kv_cache_mb": _kv_cache_mb(model, inputs, variant),
                "kl": quality.kl,
                "top1_agreement": quality.top1_agreement,
                "perplexity_ratio": quality.perplexity_ratio,
                "device": _device_name(model.device),
                "kernel": _kernel(model, inputs) if variant.strategy != "eager" else "eager",
            }
        )
    return rows


@contextmanager
def _running(model: PreTrainedModel, variant: Variant) -> Iterator:
    if not model._can_set_attn_implementation():
        yield None
        return
    before = model.config._attn_implementation
    model.set_attn_implementation("eager" if variant.strategy == "eager" else "sdpa")
    try:
        with optimized(model, variant.plan) if variant.plan else nullcontext() as run:
            yield run
    finally:
        model.set_attn_implementation(before)


def _replaced(model: PreTrainedModel, variant: Variant, run) -> int:
    """Heads replaced for the input that just ran."""
    if run is None:
        return 0
    return sum(len(run.replaced(layer)) for layer in range(model.config.get_text_config().num_hidden_layers))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak_mb(model: PreTrainedModel, inputs: Tensor, variant: Variant) -> float:
    """Memory a pass takes beyond what was held before it, in MB; NaN on the CPU, whose allocator keeps no peak."""
    if model.device.type != "cuda":
        return math.nan
    torch.cuda.reset_peak_memory_stats(model.device)
    held = torch.cuda.memory_allocated(model.device)
    with _running(model, variant), torch.inference_mode():
        model(inputs, use_cache=False)
    return (torch.cuda.max_memory_allocated(model.device) - held) / 1e6


def _kv_cache_mb(model: PreTrainedModel, inputs: Tensor, variant: Variant) -> float:
    with _running(model, variant), torch.inference_mode():
        cache = model(inputs, use_cache=True).past_key_values
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _kernel(model: PreTrainedModel, inputs: Tensor) -> str:
    """Which kernel SDPA picks for causal attention of this model's shape."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (inputs.shape[0], config.num_attention_heads, inputs.shape[1], width)
    query = torch.empty(shape, dtype=model.dtype, device=model.device)
    choice = torch._fused_sdp_choice(query, query, query, None, 0.0, True)
    return f"sdpa {SDPBackend(choice).name.lower()}"
