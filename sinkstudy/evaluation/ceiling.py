"""What a plan could save at best: operations of a prefill and bytes of a decoding step, counted from shapes.

The ceiling is the speedup over the unmodified model if everything left out were saved perfectly and nothing were added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sinkstudy.attention.optimize import attending_modules
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.evaluation.variants import last_logits

Heads = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Shape:
    """What the counts need of a model. `layers`: those that attend. `weights`: how many there are in all its linear
    layers, `head_weights` in the one that makes the logits, where a prefill makes only those of the last. `width`:
    of a head, the mean where layers differ; `kv_heads`: of the first layer."""

    layers: int
    heads: int
    kv_heads: int
    width: float
    hidden: int
    weights: int
    itemsize: int
    head_weights: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Shape":
        config = model.config.get_text_config()
        heads, attending = config.num_attention_heads, {module.layer_idx for module in attending_modules(model)}
        # The layers of Gemma 4 have heads of two widths, so that no single config holds for all of them.
        of_layers = list(config.per_layer_config)
        widths = [getattr(layer, "head_dim", None) or layer.hidden_size // heads for layer in of_layers]
        return cls(
            layers=len(attending & set(range(config.num_hidden_layers))) or config.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(of_layers[0], "num_key_value_heads", None) or heads,
            width=sum(widths) / len(widths),
            hidden=config.hidden_size,
            weights=sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)),
            itemsize=model.dtype.itemsize,
            head_weights=model.get_output_embeddings().weight.numel() if last_logits(model) else 0,
        )

    def whole_groups(self, heads: Sequence[int]) -> list[set[int]]:
        """The query heads of each KV head that only `heads` read."""
        per_kv = self.heads // self.kv_heads
        groups = (set(range(kv * per_kv, (kv + 1) * per_kv)) for kv in range(self.kv_heads))
        return [group for group in groups if group <= set(heads)]

    def read_by_decoding(self, n_tokens: int, batch: int) -> float:
        """Numbers read for one more token after `n_tokens`: every weight once, every key and value of the batch."""
        return self.weights + self.layers * self.kv_heads * 2 * batch * n_tokens * self.width


def prefill_ceiling(shape: Shape, n_tokens: int, replaced: Heads, plan: Plan, cut_layers: Sequence[int]) -> float:
    """By multiply-adds: every linear layer on every token, the logits on the last alone, and for each head scores and
    weighted sum, each width x n (n + 1) / 2. `replaced`: heads by layer. `cut_layers`: layers whose projections are
    cut."""
    per_head = shape.width * n_tokens * (n_tokens + 1)
    work = STRATEGIES[plan.strategy].work
    saved = sum(
        len(alike) * (per_head - work(n_tokens, shape.width, plan.sink_tokens, window))
        for layer, heads in replaced.items()
        for window, alike in plan.by_window(layer, heads).items()
    )
    saved += n_tokens * sum(_weights_left_out(shape, replaced[layer], plan) for layer in cut_layers)
    total = n_tokens * (shape.weights - shape.head_weights) + shape.head_weights
    total += shape.layers * shape.heads * per_head
    return total / (total - saved)


def decode_ceiling(
    shape: Shape, n_tokens: int, batch: int, replaced: Heads, plan: Plan, cut_layers: Sequence[int]
) -> float:
    """By bytes read for one more token after `n_tokens`, see `Shape.read_by_decoding`."""
    kv_head = 2 * batch * n_tokens * shape.width  # keys and values
    total = shape.read_by_decoding(n_tokens, batch)
    saved = 0.0
    for layer, heads in replaced.items():
        strategy = STRATEGIES[plan.strategy]
        if layer in cut_layers:
            saved += _weights_left_out(shape, heads, plan)
        for window, alike in plan.by_window(layer, heads).items():
            read = strategy.reads(n_tokens, plan.sink_tokens, window)
            if layer in cut_layers and strategy.from_hidden is not None:
                read = 0.0  # what it keeps does not grow with the tokens
            saved += len(shape.whole_groups(alike)) * kv_head * (1 - read)
    return total / (total - saved)


def _weights_left_out(shape: Shape, heads: Sequence[int], plan: Plan) -> int:
    """Weights of one cut layer's projections that are not used on every token."""
    rows = shape.hidden * shape.width
    # Query and key projection lose rows; where one output stands for all tokens, so do value and output projection.
    parts = 1 if STRATEGIES[plan.strategy].every_value else 2
    return rows * parts * (len(heads) + len(shape.whole_groups(heads)))
