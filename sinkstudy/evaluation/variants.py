"""The ways of running a model that are measured side by side."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from sinkstudy.attention.optimize import Run, optimized
from sinkstudy.attention.plan import Plan


@dataclass(frozen=True)
class Variant:
    """One way to run the model; `plan` None means the unmodified model under attention implementation `strategy`."""

    strategy: str
    policy: str = "none"
    plan: Plan | None = None
    depth: str = "none"


EAGER, SDPA = Variant("eager"), Variant("sdpa")


@contextmanager
def running(model: PreTrainedModel, variant: Variant) -> Iterator[Run | None]:
    """The model set to run as `variant` says; yields the state of a plan's run."""
    if not model._can_set_attn_implementation():
        yield None
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(variant.strategy if variant.plan is None else "sdpa")
    try:
        with optimized(model, variant.plan, variant.depth) if variant.plan else nullcontext() as run:
            yield run
    finally:
        model.set_attn_implementation(before)


def variants_of(model: PreTrainedModel, plans: Sequence[Plan], strategies: Sequence[str]) -> list[Variant]:
    """Every strategy with every plan that replaces anything, as deep as the model allows."""
    variants = []
    for strategy in strategies:
        for plan in plans:
            if not plan.is_empty:
                plan = replace(plan, strategy=strategy)
                with optimized(model, plan) as run:
                    depth = "projections" if run.cut else "attention"
                variants.append(Variant(strategy, plan.policy, plan, depth))
    return variants


def runs_on_sdpa(model: PreTrainedModel) -> bool:
    """Whether SDPA computes this model's attention: not where it attends by itself, caps scores or learns sinks."""
    if not model._can_set_attn_implementation():
        return False
    try:
        with running(model, SDPA), torch.inference_mode():
            model(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except ValueError:  # what Transformers raises for attention that SDPA does not cover
        return False
    return True
