"""Running a loaded model under a plan, through Transformers' attention interface.

Replaced heads' attention is not computed; kept heads run on SDPA, as all heads do in layers the plan leaves alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import ReplacedHeads
from sinkstudy.errors import StudyError

_NAME = "sinkstudy_optimized"


@dataclass
class Run:
    """State of one `with optimized(...)` block; what layer 0 decided lasts from a prefill through its decoding."""

    plan: Plan
    first_layer: int = 2**31
    first_layer_heads: list[int] = field(default_factory=list)
    first_layer_map: Tensor | None = None  # (batch, mapped head, query, key)
    first: Tensor | None = None  # (batch,)

    @property
    def mapped(self) -> list[int]:
        """Heads whose first-layer pattern later layers need."""
        if self.plan.first_layer_threshold is not None:
            return self.first_layer_heads
        return sorted({h for layer, heads in self.plan.heads.items() if layer != self.first_layer for h in heads})

    def replaced(self, layer: int) -> list[int]:
        if self.plan.first_layer_threshold is not None:
            return [] if layer == self.first_layer else self.first_layer_heads
        if self.plan.strategy == "reuse" and layer == self.first_layer:
            return []  # reusing the first layer's pattern in the first layer is computing it
        return list(self.plan.heads.get(layer, ()))


_run: ContextVar[Run] = ContextVar("sinkstudy_optimized")


@contextmanager
def optimized(model: PreTrainedModel, plan: Plan) -> Iterator[Run | None]:
    """Run `model(...)` and `model.generate(...)` under `plan` inside the block; restore the model exactly after it.

    Yields the run's state (None for an empty plan, which changes nothing). Raises StudyError when the plan names a
    layer or head the model does not have, or the model does not go through the attention interface.
    """
    _check(model, plan)
    if plan.is_empty:
        yield None
        return
    AttentionInterface.register(_NAME, _optimized_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    token = _run.set(Run(plan))
    try:
        yield _run.get()
    finally:
        _run.reset(token)
        model.set_attn_implementation(before)


def _check(model: PreTrainedModel, plan: Plan) -> None:
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    for layer, named in plan.heads.items():
        bad = [h for h in named if not 0 <= h < heads]
        if not 0 <= layer < layers or bad:
            raise StudyError(
                f"plan: layer {layer}, head {bad[0] if bad else named[0]} does not exist; the model has layers 0 to "
                f"{layers - 1} of heads 0 to {heads - 1}."
            )
    if not plan.is_empty and not model._can_set_attn_implementation():
        raise StudyError(
            f"model type {model.config.model_type!r} computes attention by itself; plans need a model that goes "
            "through "
            "Transformers' attention interface."
        )


def _optimized_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **features: object,
) -> tuple[Tensor, None]:
    """The registered attention function: output (batch, query, head, width), and no weights."""
    run, layer = _run.get(), module.layer_idx
    if features.get("softcap") is not None or features.get("s_aux") is not None:
        raise StudyError(f"{type(module).__name__} caps its scores or learns sinks, which plans do not cover yet.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    too_long = run.plan.max_tokens is not None and key.shape[-2] > run.plan.max_tokens
    if too_long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **features)
    run.first_layer = min(run.first_layer, layer)
    if layer == run.first_layer:
        _begin(run, query, key, attention_mask, scale)
    replaced = run.replaced(layer)
    if not replaced:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **features)

    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    kept = [h for h in range(heads) if h not in set(replaced)]
    output = query.new_empty(query.shape[0], query.shape[2], heads, value.shape[-1])
    if kept:
        kv = [h // groups for h in kept]
        output[:, :, kept] = torch.nn.functional.scaled_dot_product_attention(
            query[:, kept],
            key[:, kv],
            value[:, kv],
            attn_mask=attention_mask,
            is_causal=attention_mask is None and query.shape[-2] > 1,
            scale=scale,
        ).transpose(1, 2)
    given = ReplacedHeads(
        value=value[:, [h // groups for h in replaced]],
        first=run.first,
        first_layer_map=lambda: run.first_layer_map[:, [run.mapped.index(h) for h in replaced]],
    )
    output[:, :, replaced] = STRATEGIES[run.plan.strategy](given).transpose(1, 2)
    return output, None


def _begin(run: Run, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
    """In the first layer: find each sequence's first token, decide heads where the input decides, keep patterns."""
    prefill = query.shape[-2] == key.shape[-2]
    if prefill or run.first is None:  # None: the block was entered with a cache filled outside it
        run.first = _first_token(query, mask)
    decide = run.plan.first_layer_threshold is not None and prefill
    if decide:
        pattern = _pattern(query, key, mask, scale, list(range(query.shape[1])))
        run.first_layer_heads = _sinks(pattern, run.first, mask, run.plan.first_layer_threshold)
    run.first_layer_map = None
    if run.plan.strategy == "reuse" and run.mapped:
        run.first_layer_map = pattern[:, run.mapped] if decide else _pattern(query, key, mask, scale, run.mapped)


def _first_token(query: Tensor, mask: Tensor | None) -> Tensor:
    """Position of each sequence's first token: the first key that any of its queries may see."""
    if mask is None:
        return torch.zeros(query.shape[0], dtype=torch.long, device=query.device)
    return mask[:, 0].any(dim=-2).int().argmax(dim=-1).expand(query.shape[0])


def _pattern(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, heads: list[int]) -> Tensor:
    """Attention (batch, head, query, key) of `heads`, the softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    scores = query[:, heads] @ key[:, [h // groups for h in heads]].transpose(-1, -2) * scale
    if mask is not None:
        # A padding query sees nothing: its softmax is undefined, and its row is never read.
        return torch.softmax(scores.float().masked_fill(~mask, float("-inf")), -1).nan_to_num()
    n, m = scores.shape[-2:]
    future = torch.ones(n, m, dtype=torch.bool, device=scores.device).triu(m - n + 1)
    return torch.softmax(scores.float().masked_fill(future, float("-inf")), -1)


def _sinks(pattern: Tensor, first: Tensor, mask: Tensor | None, threshold: float) -> list[int]:
    """Heads whose sink score reaches the threshold in every sequence of the batch."""
    index = first[:, None, None, None].expand(-1, *pattern.shape[1:3], 1)
    mass = pattern.gather(-1, index)[..., 0]  # (batch, head, query)
    real = torch.ones_like(mass) if mask is None else mask.any(-1).expand_as(mass)
    score = (mass * real).sum(-1) / real.sum(-1)
    return torch.nonzero((score >= threshold).all(0)).flatten().tolist()
