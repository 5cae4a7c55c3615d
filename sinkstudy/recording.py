"""From prompts to a capture file: tokenize, batch, watch the forward pass, write layers as they come."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
import transformers
from tqdm import tqdm

from sinkstudy.capture import Forward, watched
from sinkstudy.capture.masses import KEY_CLASSES, Masses
from sinkstudy.errors import StudyError
from sinkstudy.models import LoadedModel, encode
from sinkstudy.prompts import Prompt
from sinkstudy.store import CaptureWriter, LayerRecord

# On a CPU, layers of a small model stay in its cache; a GPU needs many tokens to be busy.
_TOKENS_PER_BATCH = {"cpu": 512, "cuda": 4096}
# Maps are rounded to multiples of 2^-14, below float16's own error near 1; their noise would fill a third of the room.
_MAP_STEPS = 1 << 14
# Rows further from 1 than this are a broken mask or kernel, not rounding.
_ROW_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def record(path: Path, name: str, loaded: LoadedModel, prompts: list[Prompt], maps_max_tokens: int) -> None:
    """Capture `prompts` with `loaded` (called `name` in the study) into the HDF5 file `path`.

    Prompts of similar length share a forward pass; maps are stored for prompts of at most `maps_max_tokens`.
    Raises StudyError naming model, layer and prompt when attention is not finite or does not sum to 1.
    """
    token_ids = encode(loaded, {p.id: p.text for p in prompts})
    decoded = cache(lambda token: loaded.tokenizer.decode([token]))
    with (
        CaptureWriter(path, _attributes(name, loaded), KEY_CLASSES) as writer,
        watched(loaded.model, norms=True) as forward,
    ):
        for prompt in prompts:
            ids = token_ids[prompt.id]
            writer.begin(prompt, ids, [decoded(i) for i in ids])
        batches = list(_batches(token_ids, _TOKENS_PER_BATCH[loaded.model.device.type], maps_max_tokens))
        for batch in tqdm(batches, desc=f"capture {name}", unit="batch"):
            _record_batch(writer, forward, name, loaded, batch, token_ids, maps_max_tokens)


def _record_batch(
    writer: CaptureWriter,
    forward: Forward,
    name: str,
    loaded: LoadedModel,
    batch: list[str],
    token_ids: dict[str, list[int]],
    maps_max_tokens: int,
) -> None:
    lengths = [len(token_ids[p]) for p in batch]
    padded = torch.zeros(len(batch), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(batch):
        padded[row, : lengths[row]] = torch.tensor(token_ids[prompt])
    own = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (batch, query): not padding
    tolerance = _ROW_TOLERANCE[loaded.model.dtype]

    def write(layer: int, masses: Masses) -> None:
        kept = _Kept.of(masses, own)
        for row, (prompt, n) in enumerate(zip(batch, lengths, strict=True)):
            if not kept.finite[row]:
                where = f"model {name!r}, layer {layer}, prompt {prompt!r}"
                raise StudyError(f"{where}: attention is not finite; check the weights and the dtype.")
            if not kept.row_error[row] <= tolerance:
                where, error = f"model {name!r}, layer {layer}, prompt {prompt!r}", kept.row_error[row]
                raise StudyError(f"{where}: attention rows miss a sum of 1 by {error:.1e}; check the model's mask.")
            writer.add_layer(prompt, layer, kept.record(row, n))

    forward(padded, write, maps=max(lengths) <= maps_max_tokens)
    for prompt in batch:
        writer.finish(prompt)


@dataclass(frozen=True)
class _Kept:
    """What is stored of one layer of a batch, on the host, padding included."""

    keys: np.ndarray  # (batch, head, query, key_class)
    finite: np.ndarray  # (batch,)
    row_error: np.ndarray  # (batch,)
    output_norm: np.ndarray | None  # (batch, head)
    row_sum: np.ndarray | None  # (batch, head, query)
    maps: np.ndarray | None  # (batch, head, query, key) float16

    @classmethod
    def of(cls, masses: Masses, own: torch.Tensor) -> "_Kept":
        own = own.to(masses.keys.device)
        norm, maps = masses.output_norm, masses.map
        kept = (
            masses.keys,
            (masses.keys.isfinite().all(-1).all(1) | ~own).all(-1),
            masses.row_error,
            None if norm is None else (norm * own[:, None]).sum(-1) / own.sum(-1, keepdim=True),
            masses.row_sum if masses.learned_sinks else None,  # 1 elsewhere
            None if maps is None else (maps * _MAP_STEPS).round_().div_(_MAP_STEPS).half(),
        )
        return cls(*(None if tensor is None else tensor.cpu().numpy() for tensor in kept))

    def record(self, row: int, n: int) -> LayerRecord:
        """One prompt of the batch, without its padding."""
        return LayerRecord(
            key_mass=self.keys[row, :, :n],
            output_norm=np.full(self.keys.shape[1], np.nan) if self.output_norm is None else self.output_norm[row],
            row_error=float(self.row_error[row]),
            row_sum=None if self.row_sum is None else self.row_sum[row, :, :n],
            attention=None if self.maps is None else self.maps[row, :, :n, :n],
        )


def _batches(token_ids: dict[str, list[int]], tokens: int, maps_max_tokens: int) -> Iterable[list[str]]:
    """Prompts by ascending length, filled up to a token budget; prompts with and without maps are not mixed."""
    batch: list[str] = []
    for prompt in sorted(token_ids, key=lambda p: (len(token_ids[p]), p)):
        n = len(token_ids[prompt])
        first = len(token_ids[batch[0]]) if batch else n
        if batch and ((len(batch) + 1) * n > tokens or (n > maps_max_tokens >= first)):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _attributes(name: str, loaded: LoadedModel) -> dict[str, str]:
    return {
        "model": name,
        **loaded.provenance,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
    }
