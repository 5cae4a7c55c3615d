"""From prompts to a capture file: tokenize, batch, watch the forward pass, write layers as they come."""

import platform
from collections.abc import Iterable, Iterator
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
from sinkstudy.models.loading import LoadedModel, encode, within_context
from sinkstudy.prompts import Prompt
from sinkstudy.store import PromptRecord, write_capture
from sinkstudy.store.writing import CaptureWriter

# On a CPU, layers of a small model stay in its cache. Those of a large one are read in every pass, from memory or from
# disk, and a GPU needs many tokens to be busy. Offloading itself does not decide: rounding depends on the batch.
_SMALL_BATCH, _LARGE_BATCH = 1024, 4096  # tokens
_LARGE_MODEL = 1 << 31  # bytes of weights
# Maps are rounded to multiples of 2^-14, below float16's own error near 1; their noise would fill a third of the room.
_MAP_STEPS = 1 << 14
# Rows further from 1 than this are a broken mask or kernel, not rounding.
_ROW_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def record(
    path: Path,
    name: str,
    loaded: LoadedModel,
    prompts: list[Prompt],
    maps_max_tokens: int,
    too_long: str = "cut",
) -> None:
    """Capture `prompts` with `loaded` (called `name` in the study) into the HDF5 file `path`.

    Prompts of similar length share a forward pass; maps are stored for prompts of at most `maps_max_tokens`. Prompts
    beyond the model's context are cut to it, or refused (see `within_context`).
    Raises StudyError naming model, layer and prompt when attention is not finite or does not sum to 1.
    """
    whole = encode(loaded, {p.id: p.text for p in prompts})
    token_ids = within_context(loaded, whole, too_long)
    decoded = cache(lambda token: loaded.tokenizer.decode([token]))
    with (
        write_capture(path, _attributes(name, loaded), KEY_CLASSES) as writer,
        watched(loaded.model, norms=True) as forward,
    ):
        for prompt in prompts:
            ids = token_ids[prompt.id]
            writer.begin(prompt, ids, [decoded(i) for i in ids], text_tokens=len(whole[prompt.id]))
        large = sum(part.numel() * part.itemsize for part in loaded.model.parameters()) >= _LARGE_MODEL
        tokens = _LARGE_BATCH if large or loaded.model.device.type == "cuda" else _SMALL_BATCH
        batches = list(_batches(token_ids, tokens, maps_max_tokens))
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
    padded = torch.tensor([token_ids[p] + [0] * (max(lengths) - n) for p, n in zip(batch, lengths, strict=True)])
    own = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (batch, query): not padding
    kept = _Kept()

    def keep(layer: int, masses: Masses) -> None:
        kept.add(layer, masses)
        fault = _fault(kept.key_mass[-1], kept.row_errors[-1], own.numpy(), _ROW_TOLERANCE[loaded.model.dtype])
        if fault is not None:
            row, what = fault
            raise StudyError(f"model {name!r}, layer {layer}, prompt {batch[row]!r}: {what}")
        if masses.map is not None:
            maps = (masses.map * _MAP_STEPS).round_().div_(_MAP_STEPS).half().cpu().numpy()
            for row, (prompt, n) in enumerate(zip(batch, lengths, strict=True)):
                writer.add_map(prompt, maps[row, :, :n, :n])

    forward(padded, keep, maps=max(lengths) <= maps_max_tokens)
    for prompt, record in zip(batch, kept.records(own), strict=True):
        writer.finish(prompt, record)


class _Kept:
    """What is stored of a batch besides maps, gathered layer by layer on the host."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.key_mass: list[np.ndarray] = []  # each (batch, head, query, key_class)
        self.row_errors: list[np.ndarray] = []  # each (batch,)
        self.row_sum: list[np.ndarray] = []  # each (batch, head, query), only with learned sinks: 1 elsewhere
        self.output_norm: list[torch.Tensor] = []  # each (batch, head, query)

    def add(self, layer: int, masses: Masses) -> None:
        self.layers.append(layer)
        self.key_mass.append(masses.keys.cpu().numpy())
        self.row_errors.append(masses.row_error.cpu().numpy())
        if masses.learned_sinks:
            self.row_sum.append(masses.row_sum.cpu().numpy())
        norm = masses.output_norm
        self.output_norm.append(torch.full(masses.keys.shape[:3], torch.nan) if norm is None else norm.cpu())

    def records(self, own: torch.Tensor) -> Iterator[PromptRecord]:
        """One per prompt, without its padding; `own` (batch, query) says what is none."""
        key_mass = np.stack(self.key_mass, axis=1)  # (batch, layer, head, query, key_class)
        row_sum = np.stack(self.row_sum, axis=1) if self.row_sum else None
        norms = torch.stack(self.output_norm, dim=1) * own[:, None, None]
        norm = (norms.sum(-1) / own.sum(-1)[:, None, None]).numpy()  # (batch, layer, head)
        errors = np.max(self.row_errors, axis=0)
        for row, n in enumerate(own.sum(-1).tolist()):
            yield PromptRecord(
                layers=self.layers,
                key_mass=key_mass[row, :, :, :n],
                output_norm=norm[row],
                row_error=float(errors[row]),
                row_sum=None if row_sum is None else row_sum[row, :, :, :n],
            )


def _fault(key_mass: np.ndarray, row_errors: np.ndarray, own: np.ndarray, tolerance: float) -> tuple[int, str] | None:
    """The first prompt of a batch whose attention in one layer is broken: its row, and what is wrong."""
    if np.isfinite(key_mass.sum()) and (row_errors <= tolerance).all():
        return None
    finite = (np.isfinite(key_mass).all((1, 3)) | ~own).all(1)
    for row, error in enumerate(row_errors):
        if not finite[row]:
            return row, "attention is not finite; check the weights and the dtype."
        if not error <= tolerance:
            return row, f"attention rows miss a sum of 1 by {error:.1e}; check the model's mask."
    return None


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
