"""Timing a model under plans, in prefill and decoding, side by side with eager attention and SDPA."""

import math
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from sinkstudy.attention.cache import cache_bytes
from sinkstudy.attention.plan import Plan
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.ceiling import Shape, decode_ceiling, prefill_ceiling
from sinkstudy.evaluation.quality import compare
from sinkstudy.evaluation.timing import Alternative, interleaved, peak_bytes
from sinkstudy.evaluation.variants import EAGER, SDPA, Variant, at_work, running, runs_on_sdpa, variants_of
from sinkstudy.models.loading import context_length

_DECODED = 4  # tokens per sample of decoding
_NO_ATTENTION = Variant("sinkstudy_no_attention")


def benchmark_table(
    model: PreTrainedModel, name: str, token_ids: list[int], plans: list[Plan], grid: dict
) -> pd.DataFrame:
    """Prefill and decoding of every length, batch, strategy and policy, with the quality of the predictions.

    `token_ids`: held-out text; a batch of n tokens takes consecutive windows of it. `grid` holds lengths, batches,
    strategies and repeats. Left out are plans that replace nothing at a length; of plans that replace the same heads in
    the same way one is timed, and its numbers stand in the row of each. Lengths beyond the model's context or the text
    are left out; raises StudyError where none remains. A model that cannot run on SDPA has one row per cell, `eager`,
    and no comparison with it.
    """
    baselines, variants = [EAGER], []
    if runs_on_sdpa(model):
        baselines, variants = [EAGER, SDPA], variants_of(model, plans, grid["strategies"])
    rows = []
    lengths = usable_lengths(model, name, len(token_ids), grid["lengths"])
    cells = [(n, batch) for n in lengths for batch in grid["batches"]]
    for n, batch in tqdm(cells, desc=f"benchmark {name}", unit="cell"):
        inputs = windows(token_ids, n, batch).to(model.device)
        working = at_work(model, variants, inputs)
        timed = [*baselines, *(one.variant for one in working)]
        quality = _quality(model, inputs, timed)
        prepared = prepare(model, inputs, timed)
        policies = [[one.policy] for one in baselines] + [one.policies for one in working]
        for phase in ("prefill", "decode"):
            measured = measure(model, name, inputs, prepared, phase, grid["repeats"])
            for row, cost, chosen_by in zip(measured, quality, policies, strict=True):
                rows += [row | cost | {"policy": policy} for policy in chosen_by]
    return pd.DataFrame(rows)


def usable_lengths(model: PreTrainedModel, name: str, text_tokens: int, lengths: list[int]) -> list[int]:
    """The lengths that both the model's context and the text allow; what is left out is said on stderr."""
    context = context_length(model) or text_tokens
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


@dataclass(frozen=True)
class Prepared:
    """A variant on one input, ready to be timed. `replaced`: its heads by layer; `pruned`: the layers that do not
    project them. `cache_bytes`: what the KV cache of the input takes."""

    variant: Variant
    prefill: Alternative
    decode: Alternative
    replaced: dict[int, list[int]]
    pruned: list[int]
    cache_bytes: int


def prepare(model: PreTrainedModel, inputs: Tensor, variants: list[Variant]) -> list[Prepared]:
    """What is timed of `inputs` (batch, query): all `variants` and, beside SDPA, the model without any attention."""
    AttentionInterface.register(_NO_ATTENTION.strategy, _no_attention)
    AttentionMaskInterface.register(_NO_ATTENTION.strategy, sdpa_mask)
    return [_prepare(model, inputs, one) for one in (*variants, *([_NO_ATTENTION] if SDPA in variants else []))]


def measure(
    model: PreTrainedModel, name: str, inputs: Tensor, prepared: list[Prepared], phase: str, repeats: int
) -> list[dict]:
    """One row per variant: time, memory and ceiling of a prefill of `inputs` (batch, query), or of one decoded token
    after it. `attention_share` is the share of the SDPA time that goes when attention is skipped altogether."""
    alternatives = [getattr(one, phase) for one in prepared]
    variants = [one.variant for one in prepared]
    calls = _DECODED if phase == "decode" else None
    samples = interleaved(alternatives, repeats, model.device, calls)
    iqr = np.subtract(*np.quantile(samples, [0.75, 0.25], axis=0))
    # Ratios are taken within each round, so that the machine's drift meets both sides.
    sdpa = samples[:, variants.index(SDPA)] if SDPA in variants else np.full(repeats, math.nan)
    eager = samples[:, variants.index(EAGER)] if EAGER in variants else np.full(repeats, math.nan)
    shape = Shape.of(model)
    rows = []
    for i, one in enumerate(prepared):
        variant = one.variant
        if variant == _NO_ATTENTION:
            continue
        ceiling, speedup = _ceiling(shape, inputs, one, phase), np.median(sdpa / samples[:, i])
        heads = sum(map(len, one.replaced.values()))
        rows.append(
            {
                "model": name,
                "phase": phase,
                "n_tokens": inputs.shape[1],
                "batch": inputs.shape[0],
                "strategy": variant.strategy,
                "policy": variant.policy,
                "heads_replaced": heads,
                "head_fraction": heads / (shape.layers * shape.heads),
                "median_s": np.median(samples[:, i]),
                "iqr_s": iqr[i],
                "speedup_vs_sdpa": speedup,
                "speedup_vs_eager": np.median(eager / samples[:, i]),
                "ceiling": ceiling,
                "peak_mb": peak_bytes(alternatives[i], model.device) / 1e6,
                "kv_cache_mb": one.cache_bytes / 1e6,
                "kl": math.nan,
                "top1_agreement": math.nan,
                "perplexity_ratio": math.nan,
                "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
                "kernel": "eager" if variant == EAGER else kernel_name(model, inputs),
                "depth": variant.depth,
                "speedup_of_ceiling": speedup / ceiling,
                "speedup_low": np.quantile(sdpa / samples[:, i], 0.25),
                "attention_share": np.median(1 - samples[:, -1] / sdpa) if variant == SDPA else math.nan,
                "top5_agreement": math.nan,
            }
        )
    return rows


def _prepare(model: PreTrainedModel, inputs: Tensor, variant: Variant) -> Prepared:
    with running(model, variant) as run, torch.inference_mode():
        cache = model(inputs, use_cache=True).past_key_values
        layers = range(model.config.get_text_config().num_hidden_layers) if run else []
        replaced = {layer: heads for layer in layers if (heads := list(run.replaced_heads(layer)))}
        pruned = [layer for layer in replaced if layer in run.pruned]
    context, token, size = lambda: running(model, variant), inputs[:, -1:], cache_bytes(cache)
    prefill = Alternative(context, lambda: model(inputs, use_cache=False))
    decode = Alternative(context, lambda: model(token, past_key_values=cache))
    return Prepared(variant, prefill, decode, replaced, pruned, size)


def _no_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object):
    batch, heads, queries, _ = query.shape
    return query.new_zeros(batch, queries, heads, value.shape[-1]), None


def _ceiling(shape: Shape, inputs: Tensor, one: Prepared, phase: str) -> float:
    plan, (batch, n) = one.variant.plan, inputs.shape
    if plan is None:
        return 1.0
    if phase == "prefill":
        return prefill_ceiling(shape, n, one.replaced, plan, one.pruned)
    return decode_ceiling(shape, n, batch, one.replaced, plan, one.pruned)


def _quality(model: PreTrainedModel, inputs: Tensor, variants: list[Variant]) -> list[dict]:
    unmodified = SDPA if SDPA in variants else EAGER
    with running(model, unmodified), torch.inference_mode():
        reference = model(inputs, use_cache=False).logits
    costs = []
    for variant in variants:
        with running(model, variant), torch.inference_mode():
            quality = vars(compare(reference, model(inputs, use_cache=False).logits, inputs))
            costs.append({name: value for name, value in quality.items() if name != "perplexity"})
    return costs


def kernel_name(model: PreTrainedModel, inputs: Tensor) -> str:
    """Which kernel SDPA picks for causal attention of this model's shape."""
    shape = Shape.of(model)
    query = torch.empty((inputs.shape[0], shape.heads, inputs.shape[1], shape.width), dtype=model.dtype)
    query = query.to(model.device)
    choice = torch._fused_sdp_choice(query, query, query, None, 0.0, True)
    return f"sdpa {SDPBackend(choice).name.lower()}"
