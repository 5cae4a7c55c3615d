"""The ways of running a model that are measured side by side."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinkstudy.attention.optimize import attending_modules, optimized
from sinkstudy.attention.plan import Plan
from sinkstudy.attention.state import PlanState
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


FITTED = ("budget",)  # policies that choose heads for the strategy their plan names, and for no other
EAGER, SDPA = Variant("eager"), Variant("sdpa")
AGAIN = Variant("sdpa", "again")  # the same once more: how far it differs from the first is what timing cannot tell


def last_logits(model: PreTrainedModel) -> dict[str, int]:
    """What spares a prefill the logits of all positions but the last, as in `generate`, where the model knows it."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def takes_plans(model: PreTrainedModel) -> bool:
    """Whether plans can be measured on this model: SDPA runs it, a head of it can be replaced, and its weights, which
    plans cut, are in memory."""
    attending = attending_modules(model)
    if is_offloaded(model) or not attending or not runs_on_sdpa(model):
        return False
    one = Plan({attending[-1].layer_idx: [0]}, strategy="sink_window")
    try:
        with optimized(model, one), torch.inference_mode():
            model(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except StudyError:
        return False
    return True


@contextmanager
def running(model: PreTrainedModel, variant: Variant) -> Iterator[PlanState | None]:
    """The model set to run as `variant` says; yields the state of a plan's block."""
    planned = variant.plan is not None and uses_attention_interface(model)
    with (
        attention_implementation(model, variant.strategy if variant.plan is None else "sdpa"),
        optimized(model, variant.plan, variant.depth) if planned else nullcontext() as run,
    ):
        yield run


def variants_of(model: PreTrainedModel, plans: Sequence[Plan], strategies: Sequence[str]) -> list[Variant]:
    """Every strategy with every plan that replaces anything and was not fitted to another, as deep as the model
    allows."""
    variants = []
    for strategy in strategies:
        for plan in plans:
            if not plan.is_empty and (plan.policy not in FITTED or plan.strategy == strategy):
                plan = replace(plan, strategy=strategy)
                with optimized(model, plan) as run:
                    depth = "projections" if run.pruned else "attention"
                variants.append(Variant(strategy, plan.policy, plan, depth))
    return variants


def at_work(model: PreTrainedModel, variants: Sequence[Variant], inputs: Tensor) -> list["AtWork"]:
    """What each variant replaces on `inputs` (batch, query), those together that do the same.

    Left out are plans that replace nothing there: which do not cover its length, or where the input decides and no head
    is a sink. Two plans do the same where their strategies, replaced heads and settings are the same, whoever chose
    them.
    """
    found: dict[tuple, AtWork] = {}
    decided: dict[float, dict[int, tuple[int, ...]]] = {}  # what the input decides, by threshold: for all strategies
    for variant in variants:
        plan = variant.plan
        if not plan.covers(inputs.shape[1]):
            continue
        if plan.first_layer_threshold is None:
            # The plan alone decides, so two tokens tell.
            heads = _replaced(model, replace(variant, plan=replace(plan, min_tokens=None)), inputs[:, :2])
        else:
            if plan.first_layer_threshold not in decided:
                decided[plan.first_layer_threshold] = _replaced(model, variant, inputs)
            heads = decided[plan.first_layer_threshold]
        if heads:
            key = (variant.strategy, variant.depth, *heads.items(), _settings(plan, heads))
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
        layers = range(model.config.get_text_config().num_hidden_layers)
        return {layer: heads for layer in layers if (heads := run.replaced_heads(layer))}


class _Decided(Exception):
    """The first layer has attended, and nothing later decides which heads are replaced."""


def _decided(*_: object) -> None:
    raise _Decided


@dataclass(frozen=True)
class AtWork:
    """A variant on some input: its replaced `heads` by layer, and all `policies` that amount to it."""

    variant: Variant
    heads: dict[int, tuple[int, ...]]
    policies: list[str]

    def leaves_out_work(self, n_tokens: int) -> bool:
        """Whether replaced heads do less on so many tokens than attention does: not under a window that spans them."""
        plan, whole = self.variant.plan, n_tokens * (n_tokens + 1)
        widths = {width for layer, heads in self.heads.items() for width in plan.by_window(layer, heads)}
        work = STRATEGIES[plan.strategy].work
        return any(work(n_tokens, 1, plan.sink_tokens, width) < whole for width in widths)


def _settings(plan: Plan, heads: dict[int, tuple[int, ...]]) -> tuple:
    """What besides the heads decides the output of a plan under its strategy."""
    weights = plan.rest_weight if STRATEGIES[plan.strategy].needs_rest_weight else None
    chosen = weights and tuple(weights[layer][head] for layer, row in heads.items() for head in row)
    widths = tuple(plan.window_of(layer, head) for layer, row in heads.items() for head in row)
    return plan.sink_tokens, widths, chosen


def runs_on_sdpa(model: PreTrainedModel) -> bool:
    """Whether SDPA computes this model's attention: not where it attends by itself, caps scores or learns sinks."""
    if not uses_attention_interface(model):
        return False
    try:
        with running(model, SDPA), torch.inference_mode():
            model(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except ValueError:  # what Transformers raises for attention that SDPA does not cover
        return False
    return True
