"""Layers whose replaced heads are not even projected: the deeper of the two depths.

The rows of the query projection that belong to replaced heads, the key and value projections of KV heads that no kept
head reads, and the columns of the output projection of replaced heads are left out; those KV heads enter no cache. The
model's own attention code runs unchanged on what is left, because it takes the number of heads from the projections'
width. What the replaced heads would have added to the layer's output is found from the layer's input.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinkstudy.attention.cache import ReducedLayer, reduced_layer
from sinkstudy.attention.layout import Layout
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import HiddenStates


@dataclass(frozen=True)
class Projections:
    """Names of an attention module's linear layers; query and key norms, where there are any, work head by head."""

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"


# Attention classes that can be cut. A class belongs here when its forward takes the number of heads from the widths of
# four separate projections and applies nothing to all heads together; the tests cut every one of them.
CUTTABLE = {
    "Gemma3Attention": Projections(),
    "Glm4Attention": Projections(),
    "GraniteAttention": Projections(),
    "LlamaAttention": Projections(),
    "MistralAttention": Projections(),
    "MixtralAttention": Projections(),
    "PhiAttention": Projections(output="dense"),
    "Qwen2Attention": Projections(),
    "Qwen3Attention": Projections(),
    "Qwen3MoeAttention": Projections(),
    "Starcoder2Attention": Projections(),
}


def cuttable_layers(model: PreTrainedModel, plan: Plan) -> dict[int, nn.Module]:
    """Layer index to attention module of the layers of `plan` that can be cut: those of a class in the table, without
    a sliding window, whose projections are plain linear layers that nothing else has hooked into."""
    strategy = STRATEGIES[plan.strategy]
    if strategy.from_hidden is None or (strategy.needs_rest_weight and plan.rest_weight is None):
        return {}
    found = {}
    for module in model.modules():
        names, layer = CUTTABLE.get(type(module).__name__), getattr(module, "layer_idx", None)
        if names is None or layer not in plan.heads or "forward" in vars(module) or _slides(model, layer):
            continue
        linears = [getattr(module, name) for name in vars(names).values()]
        if all(type(linear) is nn.Linear and "forward" not in vars(linear) for linear in linears):
            found[layer] = module
    return found


def _slides(model: PreTrainedModel, layer: int) -> bool:
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    if types is not None:
        return types[layer] != "full_attention"
    return getattr(config, "sliding_window", None) is not None


class CutAttention:
    """One attention module with its replaced heads cut out; `install` and `remove` switch it on and off."""

    def __init__(self, attention: nn.Module, heads: int, plan: Plan, begin: Callable[[int, bool, int], None]) -> None:
        names = CUTTABLE[type(attention).__name__]
        query, key, value, output = (getattr(attention, name) for name in vars(names).values())
        self.attention, self.plan, self.begin = attention, plan, begin
        self.width = query.out_features // heads
        layer = attention.layer_idx
        device = query.weight.device
        layout = Layout(heads, key.out_features // self.width, tuple(plan.heads[layer]), device)
        self.layout = layout
        self.running = False  # inside the module's own forward, on cut projections
        self._strategy = STRATEGIES[plan.strategy]
        self._whole = {name: attention._modules[name] for name in vars(names).values()}
        self._cut: dict[str, nn.Module] = {}
        if layout.kept:
            self._cut = {
                names.query: _rows(query, layout.kept, self.width),
                names.key: _rows(key, layout.kept_kv, self.width),
                names.value: _rows(value, layout.kept_kv, self.width),
                names.output: _columns(output, layout.kept, self.width),
            }
        self._value = _rows(value, layout.replaced_kv, self.width)
        self._output = _columns(output, layout.replaced, self.width).weight
        self._bias = output.bias
        # Columns of heads that read one KV head, added up: for outputs that those heads share.
        by_head = self._output.T.reshape(len(layout.replaced), self.width, -1)
        shared = by_head.new_zeros(len(layout.replaced_kv), *by_head.shape[1:])
        shared.index_add_(0, layout.place_of_replaced, by_head)
        self._shared_output = shared.flatten(0, 1).T.contiguous()
        self._rest_weight = None
        if plan.rest_weight is not None:
            self._rest_weight = torch.tensor([[plan.rest_weight[layer][h] for h in layout.replaced]], device=device)

    def install(self) -> None:
        self.attention.forward = self._forward

    def remove(self) -> None:
        del self.attention.forward

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """(batch, query, kept head, width), for the module's own forward."""
        outputs = [group.attend(query, key, value, mask, scale) for group in self.layout.cut_groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    def _forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: object | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        layer = self.attention.layer_idx
        inputs = {
            "hidden_states": hidden_states,
            "position_embeddings": position_embeddings,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            **kwargs,
        }
        whole = type(self.attention).forward
        queries, limit = hidden_states.shape[1], self.plan.max_tokens
        start = past_key_values is None or past_key_values.get_seq_length(layer) == 0
        kept = None if start and limit is not None and queries > limit else reduced_layer(past_key_values, layer)
        if kept is None:
            return whole(self.attention, **inputs)
        self.begin(layer, start, queries)
        added = self._strategy.from_hidden(self._tokens(hidden_states, attention_mask, kept))
        if not self.layout.kept:
            kept.length += queries
            if self._bias is not None:
                added = added + self._bias
            return added.expand_as(hidden_states), None
        # The module's own table of submodules, for the time of its own forward: assigning attributes takes longer.
        self.attention._modules.update(self._cut)
        self.running = True
        try:
            output, weights = whole(self.attention, **inputs)
        finally:
            self.running = False
            self.attention._modules.update(self._whole)
        return output.add_(added), weights

    def _tokens(self, hidden: Tensor, mask: Tensor | None, kept: ReducedLayer) -> HiddenStates:
        queries = hidden.shape[1]
        return HiddenStates(
            hidden=hidden,
            real=None if mask is None else mask[:, 0, :, -queries:].any(-2).expand(hidden.shape[0], -1),
            state=kept.state,
            kv_place=self.layout.place_of_replaced,
            per_kv=self.layout.replaced_per_kv,
            rest_weight=self._rest_weight,
            value_of=lambda x: self._value(x).unflatten(-1, (-1, self.width)),
            output_of=lambda outputs: nn.functional.linear(outputs.flatten(-2), self._output),
            shared_output_of=lambda outputs: nn.functional.linear(outputs.flatten(-2), self._shared_output),
        )


def _rows(linear: nn.Linear, heads: list[int], width: int) -> nn.Linear:
    """The part of a projection that makes these heads."""
    weight = linear.weight.detach().unflatten(0, (-1, width))[heads].flatten(0, 1)
    bias = None if linear.bias is None else linear.bias.detach().unflatten(0, (-1, width))[heads].flatten()
    return _linear(weight, bias)


def _columns(linear: nn.Linear, heads: list[int] | tuple[int, ...], width: int) -> nn.Linear:
    """The part of the output projection that reads these heads, with the whole bias."""
    weight = linear.weight.detach().unflatten(1, (-1, width))[:, list(heads)].flatten(1, 2)
    return _linear(weight, None if linear.bias is None else linear.bias.detach())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
