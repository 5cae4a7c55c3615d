"""From prompts to a capture file: tokenize, batch, watch the forward pass, write layers as they come."""

import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
import transformers
from tqdm import tqdm

from sinkstudy.capture import watch_forward
from sinkstudy.capture.masses import KEY_CLASSES, Masses
from sinkstudy.errors import StudyError
from sinkstudy.models import LoadedModel, encode
from sinkstudy.prompts import Prompt
from sinkstudy.store import CaptureWriter, LayerRecord

_TOKENS_PER_BATCH = 4096
# Rows further from 1 than this are a broken mask or kernel, not rounding.
_ROW_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def record(path: Path, name: str, loaded: LoadedModel, prompts: list[Prompt], maps_max_tokens: int) -> None:
    """Capture `prompts` with `loaded` (called `name` in the study) into the HDF5 file `path`.

    Prompts of similar length share a forward pass; maps are stored for prompts of at most `maps_max_tokens`.
    Raises StudyError naming model, layer and prompt when attention is not finite or does not sum to 1.
    """
    token_ids = {p.id: encode(loaded, p.text, p.id) for p in prompts}
    decoded = cache(lambda token: loaded.tokenizer.decode([token]))
    with CaptureWriter(path, _attributes(name, loaded), KEY_CLASSES) as writer:
        for prompt in prompts:
            ids = token_ids[prompt.id]
            writer.begin(prompt, ids, [decoded(i) for i in ids])
        batches = list(_batches(token_ids, maps_max_tokens))
        for batch in tqdm(batches, desc=f"capture {name}", unit="batch"):
            _record_batch(writer, name, loaded, batch, token_ids, maps_max_tokens)


def _record_batch(
    writer: CaptureWriter,
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

    def write(layer: int, masses: Masses) -> None:
        keys, error = masses.keys.cpu().numpy(), masses.row_error.item()
        norms, sums, maps = (None if t is None else t.cpu().numpy() for t in _kept(masses))
        all_finite = np.isfinite(keys).all()
        for row, (prompt, n) in enumerate(zip(batch, lengths, strict=True)):
            where = f"model {name!r}, layer {layer}, prompt {prompt!r}"
            if not all_finite and not np.isfinite(keys[row, :, :n]).all():
                raise StudyError(f"{where}: attention is not finite; check the weights and the dtype.")
            if all_finite and not error <= _ROW_TOLERANCE[loaded.model.dtype]:
                raise StudyError(f"{where}: attention rows miss a sum of 1 by {error:.1e}; check the model's mask.")
            record = LayerRecord(
                key_mass=keys[row, :, :n],
                output_norm=np.full(keys.shape[1], np.nan) if norms is None else norms[row, :, :n].mean(-1),
                row_error=error,
                row_sum=None if sums is None else sums[row, :, :n],
                attention=None if maps is None else maps[row, :, :n, :n],
            )
            writer.add_layer(prompt, layer, record)

    watch_forward(loaded.model, padded, write, maps=max(lengths) <= maps_max_tokens, norms=True)
    for prompt in batch:
        writer.finish(prompt)


def _kept(masses: Masses) -> tuple[torch.Tensor | None, ...]:
    """Output norms, row sums and maps, as far as they are to be stored; row sums only where they are not 1."""
    return masses.output_norm, masses.row_sum if masses.learned_sinks else None, masses.map


def _batches(token_ids: dict[str, list[int]], maps_max_tokens: int) -> Iterable[list[str]]:
    """Prompts by ascending length, filled up to a token budget; prompts with and without maps are not mixed."""
    batch: list[str] = []
    for prompt in sorted(token_ids, key=lambda p: (len(token_ids[p]), p)):
        n = len(token_ids[prompt])
        first = len(token_ids[batch[0]]) if batch else n
        if batch and ((len(batch) + 1) * n > _TOKENS_PER_BATCH or (n > maps_max_tokens >= first)):
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
