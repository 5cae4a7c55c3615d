"""From which length of prompt on a plan is worth running: where decoding reads as much less as its added calls take."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.ceiling import Shape, decode_ceiling
from sinkstudy.models.loading import context_length

# On two CPU cores, one more attention call in a layer takes as long as reading this share of what the layer reads, or
# so many bytes, whichever is less.
_CALL_SHARE, _CALL_BYTES = 1 / 30, 7e5
# This stands in for the context of a model that does not state one.
_LONGEST = 1 << 20


def from_where_it_pays(model: PreTrainedModel, plan: Plan) -> Plan:
    """`plan` with `min_tokens` raised to the shortest prompt after which a decoded token reads as many bytes less as
    the plan's added calls cost; without heads where no prompt that the model takes, and the plan covers, is as long.

    Only keys and values that no kept head reads are left out. Prefill gains before: a plan's own `min_tokens`.
    """
    shape = Shape.of(model)
    calls = sum(_added_calls(shape, plan, layer, heads) for layer, heads in plan.heads.items())

    def pays(n_tokens: int) -> bool:
        read = shape.itemsize * shape.read_by_decoding(n_tokens, 1)
        left_out = read * (1 - 1 / decode_ceiling(shape, n_tokens, 1, plan.heads, plan, ()))
        return left_out >= calls * min(_CALL_SHARE * read / shape.layers, _CALL_BYTES)

    longest = min(context_length(model) or _LONGEST, plan.max_tokens or _LONGEST)
    lengths = range(plan.min_tokens or 1, longest + 1)
    start = bisect_left(lengths, True, key=pays)
    if start == len(lengths):
        return replace(plan, heads={}, windows=None)
    return replace(plan, min_tokens=lengths[start])


def _added_calls(shape: Shape, plan: Plan, layer: int, heads: Sequence[int]) -> int:
    """Attention calls of a decoding step beside the one of an unmodified layer: one for each window of KV heads that
    are left out, and one for a mask where kept heads share KV heads with replaced ones."""
    left_out = shape.whole_groups(heads)
    windows = {max(plan.window_of(layer, head) for head in group) for group in left_out}
    keeps = len(left_out) < shape.kv_heads
    shares = len(heads) > sum(map(len, left_out))
    return len(windows) + keeps + shares - 1
