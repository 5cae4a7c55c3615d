"""Layers whose replaced heads are not even projected: what they would have added is found from the layer's input.

The rows of the query projection that belong to replaced heads, the key and value projections of KV heads that no kept
head reads, and the columns of the output projection of replaced heads are left out; those KV heads enter no cache.
"""

import torch
from torch import Tensor, nn

from sinkstudy.attention.cache import ReducedLayer
from sinkstudy.attention.projections import CutModule, columns_of, rows_of
from sinkstudy.attention.run import Run
from sinkstudy.attention.strategies.contract import HiddenStates


class CutAttention(CutModule):
    """One attention module without its replaced heads."""

    def __init__(self, attention: nn.Module, heads: int, run: Run) -> None:
        super().__init__(attention, heads, run)
        query, key, value, output = self.linears
        layout = self.layout
        if layout.kept:
            self.use(
                rows_of(query, layout.kept, self.width),
                rows_of(key, layout.kept_kv, self.width),
                rows_of(value, layout.kept_kv, self.width),
                columns_of(output, layout.kept, self.width),
            )
        self._value = rows_of(value, layout.replaced_kv, self.width)
        self._output = columns_of(output, layout.replaced, self.width).weight
        self._bias = output.bias
        # Columns of heads that read one KV head, added up: for outputs that those heads share.
        by_head = self._output.T.reshape(len(layout.replaced), self.width, -1)
        shared = by_head.new_zeros(len(layout.replaced_kv), *by_head.shape[1:])
        places = torch.arange(len(shared), device=layout.device)[layout.reads.kv_place]
        shared.index_add_(0, places, by_head)
        self._shared_output = shared.flatten(0, 1).T.contiguous()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        outputs = self.attend_kept(query, key, value, mask, scale)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    def apply(self, inputs: dict, kept: ReducedLayer) -> tuple[Tensor, Tensor | None]:
        hidden = inputs["hidden_states"]
        added = self.strategy.from_hidden(self._tokens(hidden, inputs["attention_mask"], kept))
        if not self.layout.kept:
            kept.length += hidden.shape[1]
            if self._bias is not None:
                added = added + self._bias
            return added.expand_as(hidden), None
        output, weights = self.run_on_parts(inputs)
        return output.add_(added), weights

    def _tokens(self, hidden: Tensor, mask: Tensor | None, kept: ReducedLayer) -> HiddenStates:
        queries = hidden.shape[1]
        return HiddenStates(
            hidden=hidden,
            real=None if mask is None else mask[:, 0, :, -queries:].any(-2).expand(hidden.shape[0], -1),
            state=kept.state,
            reads=self.layout.reads,
            rest_weight=self.run.rest_weight(self.layer, self.layout.replaced, self.layout.device),
            value_of=lambda x: self._value(x).unflatten(-1, (-1, self.width)),
            output_of=lambda outputs: nn.functional.linear(outputs.flatten(-2), self._output),
            shared_output_of=lambda outputs: nn.functional.linear(outputs.flatten(-2), self._shared_output),
        )
