"""`sinkstudy plan`: windows for the heads that cost least, fitted to one half of a text and priced on the other."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sinkstudy.cli.models import model_of
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.budget import budget, checked_facts, window_plan
from sinkstudy.evaluation.head_costs import head_costs
from sinkstudy.evaluation.onset import from_where_it_pays
from sinkstudy.evaluation.policies import mean_kl
from sinkstudy.evaluation.retrieval import asked_texts
from sinkstudy.evaluation.variants import runs_on_sdpa
from sinkstudy.models.loading import tokenize
from sinkstudy.store import atomic_write

_MOST_TOKENS = 2048  # of each half: the backward pass over them has to fit into memory


def plan(
    source: str,
    text: Path,
    given: Mapping[str, Any],
    kl: float,
    retrieval: float,
    sink_tokens: int,
    windows: Sequence[int],
    output: Path,
) -> None:
    """Write the plan to `output` and print its price. Raises StudyError where the text is too short for any of the
    windows, or the model cannot run under a plan."""
    name, loaded = model_of(source, given)
    if not runs_on_sdpa(loaded.model):
        raise StudyError(f"model {name!r} does not run on SDPA, so it cannot run under a plan.")
    plans = [window_plan(sink_tokens, window) for window in sorted(windows)]
    narrow = plans[0]
    ids = tokenize(loaded, text.read_text(encoding="utf-8"), text.name)
    half = min(len(ids) // 2, _MOST_TOKENS)
    if not narrow.covers(half):
        raise StudyError(
            f"{text}: each half has {half} tokens (at most {_MOST_TOKENS} are read), where a window of "
            f"{narrow.window} saves work from {narrow.min_tokens} on; give a longer text or a smaller --window."
        )
    fit, check = (torch.tensor([part], device=loaded.model.device) for part in (ids[:half], ids[-half:]))
    facts = checked_facts(loaded.piece, ids[len(ids) // 2 :], half, retrieval)
    asked = asked_texts(loaded.piece, ids[: len(ids) // 2], half) if retrieval else []
    costs = head_costs(loaded.model, fit, plans, asked=asked)
    fitted = from_where_it_pays(loaded.model, budget(loaded.model, narrow, costs, check, kl, facts, retrieval))
    price = mean_kl(loaded.model, replace(fitted, min_tokens=None), [check])
    with atomic_write(output) as path:
        fitted.save(path)
    config = loaded.model.config.get_text_config()
    share = fitted.replaced / (config.num_hidden_layers * config.num_attention_heads)
    used = {fitted.window_of(layer, head) for layer, heads in fitted.heads.items() for head in heads}
    widths = " or ".join(map(str, sorted(used or {fitted.window})))
    print(
        f"{output}: {fitted.replaced} heads ({share:.1%}) see {sink_tokens} tokens and a window of {widths}, from "
        f"{fitted.min_tokens} tokens on; on the second half of {text} this costs a KL of {price:.2g} nats per token.",
        file=sys.stderr,
    )
