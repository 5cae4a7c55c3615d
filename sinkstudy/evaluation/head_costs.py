"""What replacing each head by itself would cost: all heads in one forward and one backward pass.

Where the logits of a model change by d, the divergence of its prediction p is E[(grad log p(y) . d)^2] / 2 to second
order, y drawn from p: half of d' F d, F the Fisher information of the prediction (Martens, arXiv 1412.1193, section 5).
A head's output that changes by c changes the logits by J c, and grad log p(y) J is the gradient of log p(y) at that
output. So one token is drawn at every position, and one backward pass from the sum of their log-probabilities gives the
gradient at every head's output; the cost of a head is half the mean over queries of the squared product of gradient
and change. Drawn tokens are independent of each other and their scores have mean zero, which is why their sum may stand
for each; products of two queries' changes are left out. Fisher pruning of convolutions (Theis et al., arXiv 1801.05787)
estimates channels in this way.

A mean over all tokens hides the few that need what lies far behind. Where texts ask for facts that they told, a
backward pass from the log-probabilities of the right answers shows what these would lose: to first order the sum over
queries of gradient times change, to second order half its squares more, by the same information. Unlike a divergence
this has a sign, since a head that sees less may mislead less.
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
from sinkstudy.models.layers import attention_modules

_NAME = "sinkstudy_head_costs"
_KEY = ["strategy", "window", "layer", "head", "kv_head"]
_SUMS = ["sum", "kv_head_sum", "squares", "kv_head_squares"]
COLUMNS = [*_KEY, "cost", "kv_head_cost"]
ANSWER_COLUMNS = ["answer_loss", "kv_head_answer_loss", "answer_error", "kv_head_answer_error"]


def head_costs(
    model: PreTrainedModel,
    input_ids: Tensor,
    plans: Sequence[Plan],
    seed: int = 0,
    asked: Sequence[tuple[Tensor, Sequence[int]]] = (),
) -> pd.DataFrame:
    """Expected KL divergence, nats per token, from replacing each head alone, and each KV head with all that read it.

    `input_ids` (1, query): calibration text. `plans`: what to price, of which strategy, `sink_tokens` and `window` are
    read. `seed`: of the drawn tokens. `asked`: other texts (1, query), each with its queries that predict tokens of
    answers, see `asked_texts`. One row per plan and head with COLUMNS, `window` empty where the strategy has none, and
    with ANSWER_COLUMNS where answers are `asked`: how much log-probability they would lose, nats per token of an
    answer, and the standard error of that, as if the losses by single queries were independent and had mean zero.
    Heads that a plan would leave as they are, in layers with a sliding window shorter than the text or where the
    strategy needs the first layer, have no row. Layers are recomputed in the backward pass, so that the activations of
    one are held at a time, and beside them two tensors (query, vocabulary). The model must run on SDPA. Without plans
    there are no rows.
    """
    if not plans:
        return pd.DataFrame(columns=COLUMNS)
    of_text = _products(model, input_ids, None, plans, seed)
    of_text[COLUMNS[-2:]] = of_text[_SUMS[2:]] / (2 * input_ids.shape[1])
    if not asked:
        return of_text[COLUMNS]
    of_answers = pd.concat([_products(model, *one, plans, seed) for one in asked])
    of_answers = of_answers.groupby(_KEY, dropna=False, as_index=False).sum()
    tokens = sum(len(queries) for _, queries in asked)
    sums, squares = of_answers[_SUMS[:2]].to_numpy(), of_answers[_SUMS[2:]].to_numpy()
    of_answers[ANSWER_COLUMNS[:2]] = (sums + squares / 2) / tokens
    of_answers[ANSWER_COLUMNS[2:]] = squares**0.5 / tokens
    return of_text[COLUMNS].merge(of_answers[[*_KEY, *ANSWER_COLUMNS]], on=_KEY)


def _products(
    model: PreTrainedModel, ids: Tensor, queries: Sequence[int] | None, plans: Sequence[Plan], seed: int
) -> pd.DataFrame:
    """By plan and head, sums over queries of change times gradient, and of its square. The gradient is that of minus
    the log-probability of the tokens that follow these `queries`, or else of one drawn for every query."""
    products = _Products(plans)
    AttentionInterface.register(_NAME, products.attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    with attention_implementation(model, _NAME, exclusive="is calibrated"), _recomputed(model), torch.enable_grad():
        logits = model(ids.to(model.device), use_cache=False).logits
        logits = logits if queries is None else logits[:, queries]
        with torch.no_grad():
            slope = torch.softmax(logits.float(), -1)
            if queries is None:
                tokens = torch.multinomial(slope[0], 1, generator=torch.Generator(model.device).manual_seed(seed))
            else:
                tokens = ids[0, 1:].to(model.device)[queries, None]
            slope.scatter_add_(-1, tokens[None], -torch.ones_like(tokens[None], dtype=slope.dtype))
        logits.backward(slope.to(logits.dtype))
    found = pd.DataFrame(products.rows, columns=[*_KEY, *_SUMS]).astype({"window": "Int64"})
    return found.sort_values(_KEY[:4], ignore_index=True)


class _Products:
    """Compares, wherever the model attends, each head's output with what every plan would put in its place."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans, self.rows = plans, []
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
        of_head = (gradient * change).sum(-1).double()[0]  # (query, head)
        of_kv = of_head.unflatten(-1, (kv_heads, -1)).sum(-1)
        heads, size = of_head.shape[-1], of_head.shape[-1] // kv_heads
        sums = of_head.sum(0), of_kv.sum(0), of_head.square().sum(0), of_kv.square().sum(0)
        by_head = torch.stack([one.repeat_interleave(heads // len(one)) for one in sums], 1).tolist()  # (head, _SUMS)
        priced = plan.strategy, plan.window if STRATEGIES[plan.strategy].forgets_tokens else None, layer
        self.rows += [(*priced, head, head // size, *here) for head, here in enumerate(by_head)]


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block a backward pass recomputes each layer, down to the embeddings; no parameter gets a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = {layer.block for layer in attention_modules(model).values()}
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
