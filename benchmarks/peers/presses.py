"""The peers, as kvpress 0.5.5 has them, at the KV bytes of our plans.

All three see the whole context with full attention in the prefill and drop keys and values of it afterwards.
DuoAttention scores heads on the fly, from the texts that our plans were made from instead of the data set that kvpress
would fetch. It drops nothing from the cache: in decoding it masks what streaming heads should not see.
"""

from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from kvpress import DuoAttentionPress, SnapKVPress, StreamingLLMPress
from kvpress.presses import duo_attention_press
from measure import Method
from transformers import PreTrainedModel

# Of heads that it scores on the fly, kvpress keeps so many sinks and recent tokens.
_DUO_KEPT = 128 + 256
# kvpress replaces a masked key by one that the queries of a call do not see, and fails where many queries share a call.
_AT_ONCE = 1


def methods(model: PreTrainedModel, given: dict, n: str) -> list[Method]:
    """Each press at each level, for contexts of `n` tokens."""
    duo_attention_press.load_dataset = lambda *_, **__: Dataset.from_dict({"chapter": given["calibration"]})
    scores = _head_scores(model, given["pattern"])
    duo_attention_press.duo_attention_on_the_fly = lambda _: scores
    found = []
    for level, share in given["kv_share"][n].items():
        dropped = {"kv_share": share}
        for press in (StreamingLLMPress(1 - share), SnapKVPress(1 - share)):
            name = type(press).__name__.removesuffix("Press")
            found.append(Method(name, float(level), partial(press, model), columns=dropped))
        heads = (1 - share) / (1 - _DUO_KEPT / int(n))
        duo = DuoAttentionPress(heads, on_the_fly_scoring=True)
        columns, shown = {"heads": heads} | dropped, partial(_read_share, duo)
        run = partial(duo, model)
        found.append(Method("DuoAttention", float(level), run, columns=columns, read_share=shown, at_once=_AT_ONCE))
    return found


def _read_share(press: DuoAttentionPress) -> float:
    return 1 - press.compression_ratio


def _head_scores(model: PreTrainedModel, path: Path) -> np.ndarray:
    """The pattern of kvpress's own function (layer, KV head), which takes a pass per text and is kept."""
    if not path.exists():
        np.savetxt(path, duo_attention_press.duo_attention_on_the_fly(model), delimiter=",")
    return np.loadtxt(path, delimiter=",", ndmin=2)
