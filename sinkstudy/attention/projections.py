"""Attention modules that do not project their replaced heads: what those add is found from the layer's input.

The rows of the query projection that belong to replaced heads, the key and value projections of KV heads that no kept
head reads, and the columns of the output projection of replaced heads are left out; those KV heads enter no cache. The
model's own attention code runs unchanged on what is left, because it takes the number of heads from the projections'
widths.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sinkstudy.attention.heads import AttentionInputs, HeadToKV, partition_heads
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.state import PlanState, slides
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import HiddenStates
from sinkstudy.attention.untraced import untraced
from sinkstudy.errors import StudyError

# The table names the attention classes that can be pruned, with their query, key, value and output projections. A class
# belongs here when its forward takes the number of heads from the widths of these four and applies nothing to all heads
# together; the tests prune every one of them.
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj")
PRUNABLE = {
    "Gemma3Attention": _USUAL,
    "Glm4Attention": _USUAL,
    "GraniteAttention": _USUAL,
    "LlamaAttention": _USUAL,
    "MistralAttention": _USUAL,
    "MixtralAttention": _USUAL,
    "PhiAttention": ("q_proj", "k_proj", "v_proj", "dense"),
    "Qwen2Attention": _USUAL,
    "Qwen3Attention": _USUAL,
    "Qwen3MoeAttention": _USUAL,
    "Starcoder2Attention": _USUAL,
}


def prunable_modules(model: PreTrainedModel, plan: Plan) -> list[nn.Module]:
    """The attention modules of the plan's layers that can be pruned: those of a class in the table, without a sliding
    window, whose projections are plain linear layers that nothing else has hooked into."""
    strategy, config = STRATEGIES[plan.strategy], model.config.get_text_config()
    if strategy.from_hidden is None or (strategy.needs_rest_weight and plan.rest_weight is None):
        return []
    modules = [m for m in model.modules() if type(m).__name__ in PRUNABLE and m.layer_idx in plan.heads]
    return [
        module
        for module in modules
        if "forward" not in vars(module)
        and not slides(config, module.layer_idx)
        and all(map(_is_plain, _linears(module).values()))
    ]


def _linears(attention: nn.Module) -> dict[str, nn.Module]:
    """Query, key, value and output projection, by their names in the module."""
    return {name: attention._modules[name] for name in PRUNABLE[type(attention).__name__]}


def _is_plain(linear: nn.Module) -> bool:
    hooked = "forward" in vars(linear) or linear._forward_hooks or linear._forward_pre_hooks
    return type(linear) is nn.Linear and not hooked


class PrunedAttention:
    """Stands in for one attention module's forward: kept heads run in the module's own, on a shallow copy of the module
    that has a part of each projection."""

    def __init__(self, attention: nn.Module, state: PlanState) -> None:
        self.attention, self.state, self.layer = attention, state, attention.layer_idx
        self.linears = _linears(attention)
        query, key, value, output = self.linears.values()
        heads = state.config.num_attention_heads
        width = query.out_features // heads
        replaced = tuple(state.plan.heads[self.layer])
        partition = partition_heads(heads, key.out_features // width, replaced, query.weight.device)
        self.partition, self.groups = partition, partition.groups(partition.kept, partition.kept_kv)
        kept = (
            PrunedLinear(query, rows_of(partition.kept, width)),
            PrunedLinear(key, rows_of(partition.kept_kv, width)),
            PrunedLinear(value, rows_of(partition.kept_kv, width)),
            PrunedLinear(output, columns_of(partition.kept, width), whole_bias=True),
        )
        self.kept_only = copy.copy(attention)
        self.kept_only._modules = attention._modules | dict(zip(self.linears, kept, strict=True))
        read = sorted(set(map(partition.kv_of, replaced)))
        value_of = PrunedLinear(value, rows_of(read, width))
        self.value_of = lambda hidden: value_of(hidden).unflatten(-1, (-1, width))
        self.output_weight = FollowedPart(output, "weight", columns_of(replaced, width))
        self.replaced_kv = tuple(read.index(partition.kv_of(head)) for head in replaced)
        self.shared_output_weight = FollowedPart(output, "weight", summed_columns_of(replaced, self.replaced_kv, width))

    @untraced
    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        kwargs |= {"position_embeddings": position_embeddings, "attention_mask": attention_mask}
        kwargs |= {"hidden_states": hidden_states, "past_key_values": past_key_values}
        forward, cache = type(self.attention).forward, self.state.now.layer_caches.get(self.layer)
        if not self.state.enter_layer(self.layer) or not (cache is None or cache.pruned):
            return forward(self.attention, **kwargs)
        self._check_projections()
        self.state.check_mask(attention_mask)
        kept = {} if cache is None else cache.state
        added = self.state.strategy.from_hidden(self._hidden_inputs(hidden_states, attention_mask, kept))
        if self.partition.kept:
            output, weights = forward(self.kept_only, **kwargs)
            return output.add_(added), weights
        # No head's keys are cached, but the cache has to count the tokens.
        if past_key_values is not None:
            nothing = hidden_states.new_empty(hidden_states.shape[0], 0, hidden_states.shape[1], 1)
            past_key_values.update(nothing, nothing, self.layer)
        bias = list(self.linears.values())[-1].bias
        return (added if bias is None else added + bias).expand_as(hidden_states), None

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """Attention of the kept heads, which alone are at hand: (batch, query, head, width)."""
        outputs = [group.attend(inputs) for group in self.groups]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    def _hidden_inputs(self, hidden: Tensor, mask: Tensor | None, kept: dict[str, Tensor]) -> HiddenStates:
        return HiddenStates(
            hidden=hidden,
            real=None if mask is None else mask[:, 0, :, -hidden.shape[1] :].any(-2).expand(hidden.shape[0], -1),
            state=kept,
            to_kv=HeadToKV.of(self.replaced_kv, hidden.device),
            rest_weight=self.state.calls.rest_weight(self.layer, self.partition.replaced, hidden.device),
            value_of=self.value_of,
            output_of=lambda outputs: nn.functional.linear(outputs.flatten(-2), self.output_weight()),
            shared_output_of=lambda outputs: nn.functional.linear(outputs.flatten(-2), self.shared_output_weight()),
        )

    def _check_projections(self) -> None:
        for name, linear in self.linears.items():
            if self.attention._modules[name] is not linear or not _is_plain(linear):
                raise StudyError(
                    f"{name} of layer {self.layer} was exchanged or hooked into inside `with optimized(...)`; do that "
                    "before the block, or run it at depth='attention'."
                )


class FollowedPart:
    """`part(parameter)` of a module's parameter, taken anew only when the parameter has changed.

    Where gradients are recorded it is taken in every call, so that they reach the whole parameter. PyTorch does not
    count changes made in place through `parameter.data`, so these are not seen.
    """

    def __init__(self, module: nn.Module, name: str, part: Callable[[Tensor], Tensor]) -> None:
        self.module, self.name, self.part = module, name, part
        self.taken: Tensor | None = None
        self.version: tuple | None = None

    def __call__(self) -> Tensor | None:
        parameter = getattr(self.module, self.name)
        if parameter is None:
            return None
        if parameter.requires_grad and torch.is_grad_enabled():
            return self.part(parameter)
        count = None if parameter.is_inference() else parameter._version
        version = id(parameter), parameter.data_ptr(), parameter.dtype, count
        if version != self.version:
            # A tensor made in inference mode could not be used later where gradients are recorded.
            with torch.inference_mode(False), torch.no_grad():
                self.taken, self.version = self.part(parameter).contiguous(), version
        return self.taken


class PrunedLinear(nn.Module):
    """Part of a linear layer."""

    def __init__(self, linear: nn.Linear, part: Callable[[Tensor], Tensor], *, whole_bias: bool = False) -> None:
        super().__init__()
        self.weight = FollowedPart(linear, "weight", part)
        self.bias = FollowedPart(linear, "bias", (lambda bias: bias) if whole_bias else part)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight(), self.bias())


def rows_of(heads: Sequence[int], width: int) -> Callable[[Tensor], Tensor]:
    """The part of a projection's weight or bias that makes these heads."""
    return lambda weight: weight.unflatten(0, (-1, width))[list(heads)].flatten(0, 1)


def columns_of(heads: Sequence[int], width: int) -> Callable[[Tensor], Tensor]:
    """The part of the output projection's weight that reads these heads."""
    return lambda weight: weight.unflatten(1, (-1, width))[:, list(heads)].flatten(1, 2)


def summed_columns_of(heads: Sequence[int], places: Sequence[int], width: int) -> Callable[[Tensor], Tensor]:
    """The same, the columns of heads at the same place added up: for heads that have the same output."""

    def part(weight: Tensor) -> Tensor:
        columns = weight.unflatten(1, (-1, width))[:, list(heads)]  # (hidden, head, width)
        shared = weight.new_zeros(weight.shape[0], max(places) + 1, width)
        return shared.index_add(1, torch.tensor(places, device=weight.device), columns).flatten(1, 2)

    return part
