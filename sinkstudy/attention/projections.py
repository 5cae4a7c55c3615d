"""Attention modules whose projections can be cut: which they are, and how one runs its own forward on parts of them.

The model's own attention code runs unchanged on what is left, because it takes the number of heads from the
projections' widths.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from sinkstudy.attention.cache import ReducedLayer, reduced_layer
from sinkstudy.attention.layout import Layout
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.run import Run
from sinkstudy.attention.strategies import STRATEGIES


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


# A strategy that takes the first layer's pattern saves query and key projections and little else: in layers this small
# (numbers in a query projection) dividing them takes longer.
_WORTH_DIVIDING = 1 << 16


def cuttable_layers(model: PreTrainedModel, plan: Plan) -> dict[int, nn.Module]:
    """Layer index to attention module of the layers of `plan` that can be cut: those of a class in the table, without
    a sliding window, whose projections are plain linear layers that nothing else has hooked into."""
    strategy = STRATEGIES[plan.strategy]
    if strategy.needs_rest_weight and plan.rest_weight is None:
        return {}
    modules = {module.layer_idx: module for module in model.modules() if type(module).__name__ in CUTTABLE}
    if strategy.needs_first_layer and modules:
        del modules[min(modules)]
    found = {}
    for layer, module in modules.items():
        if layer not in plan.heads or "forward" in vars(module) or _slides(model, layer):
            continue
        names = CUTTABLE[type(module).__name__]
        linears = [getattr(module, name) for name in vars(names).values()]
        if strategy.needs_first_layer and linears[0].weight.numel() < _WORTH_DIVIDING:
            continue
        if all(type(linear) is nn.Linear and "forward" not in vars(linear) for linear in linears):
            found[layer] = module
    return found


def _slides(model: PreTrainedModel, layer: int) -> bool:
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    if types is not None:
        return types[layer] != "full_attention"
    return getattr(config, "sliding_window", None) is not None


class CutModule:
    """One attention module that can run its own forward on parts of its projections; `install` and `remove` switch
    that on and off. What the parts are, and what becomes of them, is the subclasses' part."""

    def __init__(self, attention: nn.Module, heads: int, run: Run) -> None:
        names = vars(CUTTABLE[type(attention).__name__]).values()
        self.attention, self.run, self.plan = attention, run, run.plan
        self.strategy = STRATEGIES[self.plan.strategy]
        self.linears: list[nn.Linear] = [getattr(attention, name) for name in names]  # query, key, value, output
        query, key = self.linears[:2]
        self.layer, self.width = attention.layer_idx, query.out_features // heads
        replaced = tuple(self.plan.heads[self.layer])
        self.layout = Layout(heads, key.out_features // self.width, replaced, query.weight.device)
        self.running = False  # inside the module's own forward, on cut projections
        self._whole = dict(zip(names, self.linears, strict=True))
        self._parts: dict[str, nn.Module] = {}

    def install(self) -> None:
        self.attention.forward = self._forward

    def remove(self) -> None:
        del self.attention.forward

    def use(self, *parts: nn.Module) -> None:
        """The query, key, value and output projection that the module's own forward is to use."""
        self._parts = dict(zip(self._whole, parts, strict=True))

    def run_on_parts(self, inputs: dict) -> tuple[Tensor, Tensor | None]:
        # The module's own table of submodules, for the time of its own forward: assigning attributes takes longer.
        self.attention._modules.update(self._parts)
        self.running = True
        try:
            return type(self.attention).forward(self.attention, **inputs)
        finally:
            self.running = False
            self.attention._modules.update(self._whole)

    def attend_kept(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> list[Tensor]:
        """(batch, query, head, width) each, of the kept heads, which come first in every argument."""
        return [group.attend(query, key, value, mask, scale) for group in self.layout.cut_groups]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """What the module's own forward gets for attention: (batch, query, head, width), for its output projection."""
        raise NotImplementedError

    def apply(self, inputs: dict, kept: ReducedLayer) -> tuple[Tensor, Tensor | None]:
        """The module's forward, replaced heads replaced; `kept` is what stands for this layer in the KV cache."""
        raise NotImplementedError

    def _forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: object | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        inputs = {
            "hidden_states": hidden_states,
            "position_embeddings": position_embeddings,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            **kwargs,
        }
        queries, limit = hidden_states.shape[1], self.plan.max_tokens
        start = past_key_values is None or past_key_values.get_seq_length(self.layer) == 0
        too_long = start and limit is not None and queries > limit
        kept = None if too_long else reduced_layer(past_key_values, self.layer)
        if kept is None:
            return type(self.attention).forward(self.attention, **inputs)
        self.run.begin(self.layer, start, queries)
        return self.apply(inputs, kept)


def rows_of(linear: nn.Linear, heads: list[int], width: int) -> nn.Linear:
    """The part of a projection that makes these heads."""
    weight = linear.weight.detach().unflatten(0, (-1, width))[heads].flatten(0, 1)
    bias = None if linear.bias is None else linear.bias.detach().unflatten(0, (-1, width))[heads].flatten()
    return _linear(weight, bias)


def columns_of(linear: nn.Linear, heads: list[int] | tuple[int, ...], width: int) -> nn.Linear:
    """The part of the output projection that reads these heads, with the whole bias."""
    weight = linear.weight.detach().unflatten(1, (-1, width))[:, list(heads)].flatten(1, 2)
    return _linear(weight, None if linear.bias is None else linear.bias.detach())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
