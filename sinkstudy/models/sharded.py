"""Writing a checkpoint as its weights come, so that no more than a shard of it is ever in memory."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 1 << 30


def write_shards(folder: Path, parts: Iterable[dict[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write `parts`, weights by name, as safetensors files of at least `shard_bytes` but the last, and their index.

    Weights that fill no more than one file make up `model.safetensors`, which needs no index.
    """
    weight_map: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    count = 0

    def save() -> None:
        nonlocal held, count
        count += 1
        file = f"model-{count:05d}.safetensors"
        save_file(held, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, file))
        held = {}

    for part in parts:
        held |= part
        if sum(weight.nbytes for weight in held.values()) >= shard_bytes:
            save()
    if held:
        save()
    if count == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
