"""Plans of policy `budget`, in the study's own environment."""

from functools import partial

from measure import Method
from transformers import PreTrainedModel

from sinkstudy.attention import Plan, optimized


def methods(model: PreTrainedModel, given: dict, n: str) -> list[Method]:
    """One per level."""
    return [
        _under(model, Plan(**plan), float(level), given["kv_share"][n][level]) for level, plan in given["plans"].items()
    ]


def _under(model: PreTrainedModel, plan: Plan, level: float, kv_share: float) -> Method:
    config = model.config.get_text_config()
    heads = plan.replaced / (config.num_hidden_layers * config.num_attention_heads)
    run = partial(optimized, model, plan)
    return Method("budget plan", level, run, run, {"heads": heads, "kv_share": kv_share})
