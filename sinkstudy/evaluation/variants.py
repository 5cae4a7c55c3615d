"""The ways of running a model that are measured side by side."""

import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.optimize import attending_modules, optimized
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.state import PlanState, slides
from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.errors import StudyError
from sinkstudy.models.implementation import attention_implementation, uses_attention_interface
from sinkstudy.models.offload import is_offloaded


@dataclass(frozen=True)
class Variant:
    """One way to run the model; `plan` None means the unmodified model under attention implementation `strategy`."""

    strategy: str
    policy: str = "none"
    plan: Plan | None = None
    depth: str = "none"


EAGER, SDPA = Variant("eager"), Variant("sdpa")
AGAIN = Variant("sdpa", "again")  # the same once more: how far it differs from the first is what timing cannot tell


@dataclass(frozen=True)
class AtWork:
    """A variant on some input: its replaced `heads` by layer, and all `policies` that amount to it."""

    variant: Variant
    heads: dict[int, tuple[int, ...]]
    policies: list[str]

    def cells(self) -> list[dict[str, object]]:
        """What a table says of it, for each of its policies."""
        replaced = sum(map(len, self.heads.values()))
        shared = {"strategy": self.variant.strategy, "depth": self.variant.depth, "heads_replaced": replaced}
        return [shared | {"policy": policy} for policy in self.policies]

    def leaves_out_work(self, n_tokens: int) -> bool:
        """Whether replaced heads do less on so many tokens than attention does: not under a window that spans them."""
        plan, whole = self.variant.plan, n_tokens * (n_tokens + 1)
        widths = {width for layer, heads in self.heads.items() for width in plan.by_window(layer, heads)}
        work = STRATEGIES[plan.strategy].work
        return any(work(n_tokens, 1, plan.sink_tokens, width) < whole for width in widths)


def last_logits(model: PreTrainedModel) -> dict[str, int]:
    """What spares a prefill the logits of all positions but the last, as in `generate`, where the model knows it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def takes_plans(model: PreTrainedModel) -> bool:
    """Whether plans can be measured on this model: SDPA runs it, a head of it can be replaced, and its weights, which
    plans cut, are in memory."""
    attending = attending_modules(model)
    if is_offloaded(model) or not attending or not runs_on_sdpa(model):
        return False
    plan = Plan({attending[-1].layer_idx: [0]}, strategy="sink_window")
    return _runs(model, Variant(plan.strategy, plan=plan, depth="projections"), StudyError)


def runs_on_sdpa(model: PreTrainedModel) -> bool:
    """Whether SDPA computes this model's attention: not where it attends by itself, caps scores or learns sinks."""
    # Transformers raises ValueError for attention that SDPA does not cover.
    return uses_attention_interface(model) and _runs(model, SDPA, ValueError)


def _runs(model: PreTrainedModel, variant: Variant, refusal: type[Exception]) -> bool:
    with suppress(refusal), running(model, variant), torch.inference_mode():
        model(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
        return True
    return False


def unmodified(model: PreTrainedModel) -> AtWork:
    """What plans are compared with: the model on SDPA, or with eager attention where SDPA does not run it."""
    variant = SDPA if runs_on_sdpa(model) else EAGER
    return AtWork(variant, {}, [variant.policy])


def running(model: PreTrainedModel, variant: Variant) -> AbstractContextManager[PlanState | None]:
    """The model set to run as `variant` says inside the block; gives the state of a plan's block."""
    if variant.plan is None:
        return attention_implementation(model, variant.strategy)
    return optimized(model, variant.plan, variant.depth)


def variants_of(model: PreTrainedModel, plans: Sequence[Plan], strategies: Sequence[str]) -> list[Variant]:
    """Every strategy with every plan that replaces anything and was not fitted to another, as deep as the model
    allows. None where it takes no plans."""
    variants = []
    for strategy in strategies if takes_plans(model) else ():
        for plan in plans:
            # Policy budget alone chooses heads for the strategy that its plan names.
            if not plan.is_empty and (plan.policy != "budget" or plan.strategy == strategy):
                plan = replace(plan, strategy=strategy)
                with optimized(model, plan) as run:
                    depth = "projections" if run.pruned else "attention"
                variants.append(Variant(strategy, plan.policy, plan, depth))
    return variants


def at_work(model: PreTrainedModel, variants: Sequence[Variant], inputs: Tensor) -> list[AtWork]:
    """What each variant replaces on `inputs` (batch, query), those together that do the same.

    Left out are plans that replace nothing there: which do not cover its length, or where the input decides and no head
    is a sink. Two plans do the same where their strategies, replaced heads and settings are the same, whoever chose
    them.
    """
    found: dict[tuple, AtWork] = {}
    for variant in variants:
        if heads := _replaced(model, variant, inputs):
            key = (variant.strategy, variant.depth, *heads.items(), _settings(variant.plan, heads))
            found.setdefault(key, AtWork(variant, heads, [])).policies.append(variant.policy)
    return list(found.values())


@torch.inference_mode()
def _replaced(model: PreTrainedModel, variant: Variant, inputs: Tensor) -> dict[int, tuple[int, ...]]:
    """Replaced heads by layer, after as much of a pass over `inputs` as decides them."""
    modules = attending_modules(model)
    with running(model, variant) as run:
        second = modules[1].register_forward_pre_hook(_decided) if len(modules) > 1 else nullcontext()
        with second, suppress(_Decided):
            model(inputs, use_cache=False)
        return replaced_heads(model, run, inputs.shape[1])


def replaced_heads(model: PreTrainedModel, run: PlanState, n_tokens: int) -> dict[int, tuple[int, ...]]:
    """By layer that attends, in the pass that ran last, over so many tokens: layers whose sliding window these fill run
    unchanged."""
    config = model.config.get_text_config()
    fills = n_tokens >= (getattr(config, "sliding_window", None) or math.inf)
    layers = [module.layer_idx for module in attending_modules(model)]
    planned = [layer for layer in layers if not (fills and slides(config, layer))]
    return {layer: heads for layer in planned if (heads := run.replaced_heads(layer))}


class _Decided(Exception):
    """The first layer has attended, and nothing later decides which heads are replaced."""


def _decided(*_: object) -> None:
    raise _Decided


def _settings(plan: Plan, heads: dict[int, tuple[int, ...]]) -> tuple:
    """What besides the heads decides the output of a plan under its strategy."""
    weights = plan.rest_weight if STRATEGIES[plan.strategy].needs_rest_weight else None
    chosen = weights and tuple(weights[layer][head] for layer, row in heads.items() for head in row)
    widths = tuple(plan.window_of(layer, head) for layer, row in heads.items() for head in row)
    return plan.sink_tokens, widths, chosen
