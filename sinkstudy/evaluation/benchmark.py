"""Timing a model under plans, in prefill and decoding, side by side with eager attention and SDPA."""

import copy
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import sdpa_mask

from sinkstudy.attention.cache import cache_bytes
from sinkstudy.attention.plan import Plan
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.ceiling import Shape, decode_ceiling, prefill_ceiling
from sinkstudy.evaluation.quality import Quality, compare
from sinkstudy.evaluation.timing import Alternative, Rounds, interleaved, peak_bytes
from sinkstudy.evaluation.turns import twin
from sinkstudy.evaluation.variants import (
    AGAIN,
    EAGER,
    SDPA,
    AtWork,
    Variant,
    at_work,
    last_logits,
    replaced_heads,
    running,
    runs_on_sdpa,
    variants_of,
)
from sinkstudy.models.layers import attention_modules
from sinkstudy.models.loading import context_length
from sinkstudy.models.offload import is_offloaded
from sinkstudy.stats.speedups import speedups

CELL = ["phase", "n_tokens", "batch"]
_DECODED = 4  # tokens per sample of decoding
_NO_ATTENTION = Variant("sinkstudy_no_attention")


def benchmark_table(
    model: PreTrainedModel, name: str, token_ids: list[int], plans: list[Plan], grid: dict
) -> pd.DataFrame:
    """Prefill and decoding of every length, batch, strategy and policy, with the quality of the predictions.

    `token_ids`: held-out text; a batch of n tokens takes consecutive windows of it. `grid` holds lengths, batches,
    strategies, and repeats, precision and seconds_per_cell, see `Rounds`. Left out are plans that replace nothing at a
    length; of plans that replace the same heads in the same way one is timed, and its numbers stand in the row of each.
    Lengths beyond the model's context or the text are left out; raises StudyError where none remains. SDPA is timed
    twice over (policy `again`). A model that cannot run on SDPA has one row per cell, `eager`, and no comparison with
    it; one without a KV cache (GPT-1) has no rows of decoding; one whose layers are on disk is not timed, since that
    would time the disk, and has no rows.
    """
    if is_offloaded(model):
        return pd.DataFrame(columns=["model", *CELL, "strategy", "policy", "heads_replaced"])
    baselines = [EAGER, SDPA, AGAIN] if runs_on_sdpa(model) else [EAGER]
    variants = variants_of(model, plans, grid["strategies"])
    rounds = Rounds(grid["repeats"], grid["precision"], grid["seconds_per_cell"])
    rows = []
    lengths = usable_lengths(model, name, len(token_ids), grid["lengths"])
    cells = [(n, batch) for n in lengths for batch in grid["batches"]]
    for n, batch in tqdm(cells, desc=f"benchmark {name}", unit="cell"):
        inputs = windows(token_ids, n, batch).to(model.device)
        ways = [*(AtWork(one, {}, [one.policy]) for one in baselines), *at_work(model, variants, inputs)]
        prepared = prepare(model, inputs, [one.variant for one in ways])
        for phase in ("prefill", "decode") if prepared[0].decode else ("prefill",):
            measured = measure(model, name, inputs, prepared, phase, rounds)
            for row, one in zip(measured, ways, strict=True):
                rows += [row | {"policy": policy} for policy in one.policies]
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
    project them. `cache`: the KV cache of the input; without one `decode` is None, too."""

    variant: Variant
    prefill: Alternative
    decode: Alternative | None
    replaced: dict[int, tuple[int, ...]]
    pruned: list[int]
    cache: Cache | None
    quality: Quality


def prepare(model: PreTrainedModel, inputs: Tensor, variants: list[Variant]) -> list[Prepared]:
    """What is timed of `inputs` (batch, query): all `variants` and, beside SDPA, the model without any attention.

    Each runs once, which fills its KV cache, warms it up and shows its predictions.
    """
    AttentionInterface.register(_NO_ATTENTION.strategy, _no_attention)
    AttentionMaskInterface.register(_NO_ATTENTION.strategy, sdpa_mask)
    unmodified = SDPA if SDPA in variants else EAGER
    first, reference = _prepare(model, inputs, unmodified)
    prepared = []
    for one in [*variants, *([_NO_ATTENTION] if unmodified == SDPA else [])]:
        if one == unmodified:
            prepared.append(first)
        elif one == AGAIN:
            prefill, decode = _alternatives(model, inputs, one, first.cache, first.prefill.seconds)
            prepared.append(replace(first, variant=one, prefill=prefill, decode=decode))
        else:
            prepared.append(_prepare(model, inputs, one, reference)[0])
    return prepared


def measure(
    model: PreTrainedModel, name: str, inputs: Tensor, prepared: list[Prepared], phase: str, rounds: Rounds
) -> list[dict]:
    """One row per variant: time, memory and ceiling of a prefill of `inputs` (batch, query), or of one decoded token
    after it. `attention_share` is the share of the SDPA time that goes when attention is skipped altogether."""
    alternatives = [getattr(one, phase) for one in prepared]
    variants = [one.variant for one in prepared]
    samples = interleaved(alternatives, rounds, model.device, _DECODED if phase == "decode" else None)
    iqr = np.subtract(*np.nanquantile(samples, [0.75, 0.25], axis=0))
    sdpa, eager = (
        samples[:, variants.index(one)] if one in variants else np.full(len(samples), math.nan) for one in (SDPA, EAGER)
    )
    shape, rows = Shape.of(model), []
    for i, one in enumerate(prepared):
        variant, alternative = one.variant, alternatives[i]
        if variant == _NO_ATTENTION:
            continue
        ceiling = _ceiling(shape, inputs, one, phase)
        speedup, factor, freedom = _speedup(samples, alternatives, variants, i)
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
                "median_s": np.nanmedian(samples[:, i]),
                "iqr_s": iqr[i],
                "speedup_vs_sdpa": speedup,
                "speedup_low": speedup / factor,
                "speedup_high": speedup * factor,
                "speedup_vs_eager": np.exp(np.nanmean(np.log(eager / samples[:, i]))),
                "ceiling": ceiling,
                "peak_mb": peak_bytes(alternative, model.device) / 1e6,
                "kv_cache_mb": 0 if one.cache is None else cache_bytes(one.cache) / 1e6,
                "kl": one.quality.kl,
                "top1_agreement": one.quality.top1_agreement,
                "perplexity_ratio": one.quality.perplexity_ratio,
                "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
                "kernel": "eager" if variant == EAGER else kernel_name(model, inputs),
                "depth": variant.depth,
                "speedup_of_ceiling": speedup / ceiling,
                "attention_share": np.nanmedian(1 - samples[:, -1] / sdpa) if variant == SDPA else math.nan,
                "top5_agreement": one.quality.top5_agreement,
                "rounds": np.count_nonzero(~np.isnan(samples[:, i])),
                "degrees_of_freedom": freedom,
            }
        )
    return rows


def _speedup(
    samples: np.ndarray, alternatives: list[Alternative], variants: list[Variant], i: int
) -> tuple[float, float, int]:
    """Alternative i over SDPA: the ratio, the factor its interval reaches to either side, its degrees of freedom."""
    if SDPA not in variants:
        return math.nan, math.nan, 0
    sdpa = variants.index(SDPA)
    ways = [k for k, one in enumerate(alternatives) if one.compared or k == i]
    found = speedups(samples[~np.isnan(samples[:, i])][:, ways], ways.index(sdpa))
    return found.ratio[ways.index(i)], 1.0 if i == sdpa else found.factor, found.freedom


def _prepare(
    model: PreTrainedModel, inputs: Tensor, variant: Variant, reference: Tensor | None = None
) -> tuple[Prepared, Tensor | None]:
    """The variant, and its logits where the model has any; `reference`: those it is compared with, or else its own."""
    start = time.perf_counter()
    with running(model, variant) as run, torch.inference_mode():
        output = model(inputs, use_cache=True)
        replaced = replaced_heads(model, run, inputs.shape[1]) if run else {}
        pruned = [layer for layer in replaced if layer in run.pruned]
    seconds, cache, logits = time.perf_counter() - start, output.get("past_key_values"), output.get("logits")
    quality = Quality(*[math.nan] * len(fields(Quality)))
    if logits is not None and variant != _NO_ATTENTION:
        quality = compare(logits if reference is None else reference, logits, inputs)
    prefill, decode = _alternatives(model, inputs, variant, cache, seconds)
    return Prepared(variant, prefill, decode, replaced, pruned, cache, quality), logits


def _alternatives(
    model: PreTrainedModel, inputs: Tensor, variant: Variant, cache: Cache | None, seconds: float
) -> tuple[Alternative, Alternative | None]:
    """A prefill, which took `seconds`, and one more token after it, on a twin of the model."""
    own, now = twin(model), []
    compared, last = variant not in (EAGER, _NO_ATTENTION), last_logits(model)
    layers = dict.fromkeys(layer.block for layer in attention_modules(own).values())

    @contextmanager
    def continued() -> Iterator[None]:
        # From a copy, since decoding makes a cache longer, for good.
        with running(own, variant):
            now.append(copy.deepcopy(cache))
            yield
            now.clear()

    def prefill() -> object:
        return own(inputs, use_cache=False, **last)

    def decode() -> object:
        return own(inputs[:, -1:], past_key_values=now[0])

    return (
        Alternative(lambda: running(own, variant), prefill, compared, seconds, tuple(layers)),
        None if cache is None else Alternative(continued, decode, compared),
    )


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


def kernel_name(model: PreTrainedModel, inputs: Tensor) -> str:
    """Which kernel SDPA picks for causal attention of this model's shape."""
    shape = Shape.of(model)
    sizes = inputs.shape[0], shape.heads, inputs.shape[1], int(shape.width)
    query = torch.empty(sizes, dtype=model.dtype, device=model.device)
    choice = torch._fused_sdp_choice(query, query, query, None, 0.0, True)
    return f"sdpa {SDPBackend(choice).name.lower()}"
