"""What replacing each head by itself would cost: all heads in one forward and one backward pass.

Where the logits of a model change by d, the divergence of its prediction p is E[(grad log p(y) . d)^2] / 2 to second
order, y drawn from p: half of d' F d, F the Fisher information of the prediction (Martens, arXiv 1412.1193, section 5).
A head's output that changes by c changes the logits by J c, and grad log p(y) J is the gradient of log p(y) at that
output. So one token is drawn at every position, and one backward pass from the sum of their log-probabilities gives the
gradient at every head's output; the cost of a head is half the mean over queries of the squared product of gradient
and change. Drawn tokens are independent of each other and their scores have mean zero, which is why their sum may stand
for each; products of two queries' changes are left out. Fisher pruning of convolutions (Theis et al., arXiv 1801.05787)
estimates channels in this way.

A mean over all tokens hides the few that need what lies far behind. Where a text asks for facts that it told, the same
estimate from the predictions of the answers alone shows the heads that find them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sinkstudy.attention.heads import AttentionInputs, HeadToKV
from sinkstudy.attention.pattern import attention_pattern
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.attention.strategies.contract import ReplacedHeads
from sinkstudy.errors import StudyError
from sinkstudy.models.implementation import attention_implementation

_NAME = "sinkstudy_head_costs"
_KEY = ["strategy", "window", "layer", "head", "kv_head"]
COLUMNS = [*_KEY, "cost", "kv_head_cost"]
ANSWER_COLUMNS = ["answer_cost", "kv_head_answer_cost"]


def head_costs(
    model: PreTrainedModel,
    input_ids: Tensor,
    plans: Sequence[Plan],
    seed: int = 0,
    asked: tuple[Tensor, Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Expected KL divergence, nats per token, from replacing each head alone, and each KV head with all that read it.

    `input_ids` (1, query): calibration text. `plans`: what to price, of which strategy, `sink_tokens` and `window` are
    read. `seed`: of the drawn tokens. `asked`: another text (1, query) and its queries whose predictions are answers,
    see `asked_text`. One row per plan and head with COLUMNS, `window` empty where the strategy has none, and with
    ANSWER_COLUMNS where answers are `asked`: the same costs for these alone, nats per token of an answer. Heads that a
    plan would leave as they are, in layers with a sliding window shorter than the text or where the strategy needs the
    first layer, have no row. Layers are recomputed in the backward pass, so that the activations of one are held at a
    time, and beside them two tensors (query, vocabulary). The model must run on SDPA. Without plans there are no rows.
    """
    if not plans:
        return pd.DataFrame(columns=COLUMNS)
    of_text = _estimated(model, input_ids, None, plans, seed)
    if asked is None:
        return of_text
    of_answers = _estimated(model, *asked, plans, seed).rename(
        columns={"cost": ANSWER_COLUMNS[0], "kv_head_cost": ANSWER_COLUMNS[1]}
    )
    return of_text.merge(of_answers, on=_KEY)


def _estimated(
    model: PreTrainedModel, input_ids: Tensor, counted: Sequence[int] | None, plans: Sequence[Plan], seed: int
) -> pd.DataFrame:
    """The costs for the predictions of the `counted` queries, or of all."""
    costs = _Costs(plans, input_ids.shape[1] if counted is None else len(counted))
    AttentionInterface.register(_NAME, costs.attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    with attention_implementation(model, _NAME, exclusive="is calibrated"), _recomputed(model), torch.enable_grad():
        logits = model(input_ids.to(model.device), use_cache=False).logits
        logits = logits if counted is None else logits[:, counted]
        with torch.no_grad():
            slope = torch.softmax(logits.float(), -1)
            drawn = torch.multinomial(slope[0], 1, generator=torch.Generator(model.device).manual_seed(seed))
            slope = slope.neg_().scatter_add_(-1, drawn[None], torch.ones_like(drawn[None], dtype=slope.dtype))
        logits.backward(slope.to(logits.dtype))
    found = pd.DataFrame(costs.rows, columns=COLUMNS).astype({"window": "Int64"})
    return found.sort_values(COLUMNS[:4], ignore_index=True)


class _Costs:
    """Compares, wherever the model attends, each head's output with what every plan would put in its place."""

    def __init__(self, plans: Sequence[Plan], counted: int) -> None:
        self.plans, self.counted, self.rows = plans, counted, []
        self.first: tuple[int, AttentionInputs] | None = None  # the first layer, and what it attended to

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **features: object,
    ) -> tuple[Tensor, None]:
        """The registered attention function: output (batch, query, head, width), and no weights."""
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            raise StudyError(f"{type(module).__name__} has an attention mask of numbers, which plans do not cover.")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scale, **features)[0]
        inputs = AttentionInputs(*(states.detach() for states in (query, key, value)), attention_mask, scale)
        self.first = self.first or (module.layer_idx, inputs)
        window = features.get("sliding_window")
        # The forward pass records nothing: layers are compared when the backward pass recomputes them.
        if output.requires_grad and (window is None or key.shape[2] < window):
            for plan in self.plans:
                if module.layer_idx != self.first[0] or not STRATEGIES[plan.strategy].needs_first_layer:
                    change = self._replaced(plan, inputs).transpose(1, 2) - output.detach()
                    output.register_hook(partial(self._add, plan, module.layer_idx, key.shape[1], change))
        return output, None

    @torch.no_grad()
    def _replaced(self, plan: Plan, inputs: AttentionInputs) -> Tensor:
        """What the plan's strategy gives for every head, (batch, head, query, width)."""
        heads, kv_heads = inputs.query.shape[1], inputs.key.shape[1]
        given = ReplacedHeads(
            *inputs[:3],
            to_kv=HeadToKV.of(tuple(h * kv_heads // heads for h in range(heads)), inputs.query.device),
            mask=inputs.mask,
            scale=inputs.scale,
            sink_tokens=plan.sink_tokens,
            window=plan.window,
            rest_weight=None,
            memory={},
            first_layer_pattern=lambda: attention_pattern(self.first[1], range(heads)),
        )
        return STRATEGIES[plan.strategy].from_heads(given)

    def _add(self, plan: Plan, layer: int, kv_heads: int, change: Tensor, gradient: Tensor) -> None:
        product = (gradient * change).sum(-1).double()  # (batch, query, head)
        of_kv = product.unflatten(-1, (kv_heads, -1)).sum(-1)
        cost, of_kv = (part.square().sum((0, 1)).div(2 * self.counted).tolist() for part in (product, of_kv))
        size = len(cost) // kv_heads
        priced = plan.strategy, plan.window if STRATEGIES[plan.strategy].forgets_tokens else None, layer
        self.rows += [(*priced, head, head // size, one, of_kv[head // size]) for head, one in enumerate(cost)]


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block a backward pass recomputes each layer, down to the embeddings; no parameter gets a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [m for m in model.modules() if any(hasattr(child, "layer_idx") for child in m.children())]
    # The hook returns a copy, since some models scale their embeddings in place, which a leaf of the graph forbids.
    embedded = model.get_input_embeddings().register_forward_hook(
        lambda module, given, found: found.requires_grad_().clone()
    )
    model.requires_grad_(False)
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)
    try:
        yield
    finally:
        embedded.remove()
        for layer in layers:
            del layer.forward
        for parameter in trained:
            parameter.requires_grad_(True)


def _checkpointed(forward: object, *inputs: object, **named: object) -> object:
    # The other kind of checkpoint records in the forward pass too, and would hold every layer's change until then.
    return checkpoint(partial(forward, **named), *inputs, use_reentrant=True)
