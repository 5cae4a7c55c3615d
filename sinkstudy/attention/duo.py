"""Plans as DuoAttention's head patterns (arXiv 2410.10819) and back.

Its file full_attention_heads.tsv has a row per layer and a column per KV head, tab-separated: 1 for a head that keeps
full attention, 0 for one that attends to sinks and recent tokens alone. How many of these it says elsewhere.
"""

from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig

from sinkstudy.attention.plan import Plan
from sinkstudy.errors import StudyError


def save_duo_pattern(plan: Plan, config: PreTrainedConfig, path: Path | str) -> None:
    """Write the heads of `plan`, for a model of this `config`.

    Raises StudyError for a plan of another strategy than `sink_window`, whose heads the input decides, or that replaces
    some but not all query heads of a KV head: the file cannot say so.
    """
    if plan.strategy != "sink_window" or plan.first_layer_threshold is not None:
        raise StudyError("plan: only heads that a plan names for sink_window can be written as a DuoAttention pattern.")
    layers, kv_heads, size = _shape(config)
    replaced = np.zeros((layers, kv_heads * size))
    for layer, heads in plan.heads.items():
        replaced[layer, heads] = 1
    share = replaced.reshape(layers, kv_heads, size).mean(-1)
    if np.any((share > 0) & (share < 1)):
        layer, kv_head = np.argwhere((share > 0) & (share < 1))[0]
        raise StudyError(
            f"plan: layer {layer} replaces some heads of KV head {kv_head} and keeps others, which a DuoAttention "
            "pattern cannot hold; replace all of them or none."
        )
    np.savetxt(path, 1 - share, fmt="%g", delimiter="\t")


def load_duo_pattern(
    path: Path | str, config: PreTrainedConfig, *, sink_tokens: int, window: int, keep_from: float = 0.5
) -> Plan:
    """The plan that replaces every KV head whose value in the pattern is below `keep_from`.

    Raises StudyError naming the file where it is no pattern of a model of this `config`.
    """
    layers, kv_heads, size = _shape(config)
    try:
        kept = np.loadtxt(path, dtype=float, delimiter="\t", ndmin=2)
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: is no DuoAttention pattern ({error}).") from None
    if kept.shape != (layers, kv_heads):
        raise StudyError(
            f"{path}: has {kept.shape[0]} rows of {kept.shape[1]} values; this model has {layers} layers of {kv_heads} "
            "KV heads."
        )
    replaced = np.repeat(kept < keep_from, size, axis=1)
    heads = {layer: np.flatnonzero(row).tolist() for layer, row in enumerate(replaced)}
    return Plan(heads=heads, strategy="sink_window", sink_tokens=sink_tokens, window=window, policy=Path(path).stem)


def _shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Layers, KV heads, and query heads that read each."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return config.num_hidden_layers, kv_heads, heads // kv_heads
