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
from transformers import PreTrainedModel

from sinkstudy.capture import Forward, watched
from sinkstudy.capture.masses import KEY_CLASSES, Masses
from sinkstudy.capture.norms import CHANNELS
from sinkstudy.errors import StudyError
from sinkstudy.measures.captured import Capture, Keep
from sinkstudy.models.loading import LoadedModel, context_length, encode, within_context
from sinkstudy.prompts import Prompt
from sinkstudy.store import write_capture
from sinkstudy.store.captures import CaptureWriter

# On a CPU, layers of a small model stay in its cache. Those of a large one are read in every pass, from memory or from
# disk, and a GPU needs many tokens to be busy. Offloading itself does not decide: rounding depends on the batch.
_SMALL_BATCH, _LARGE_BATCH = 1024, 4096  # tokens
_LARGE_MODEL = 1 << 31  # bytes of decoder weights
# Kernels add up the numbers of a narrower batch in another order. Without this padding, rounding in the capture of a
# short prompt would depend on the longest prompt of its batch.
_LEAST_WIDTH = 16  # tokens
# Maps are rounded to multiples of 2^-14, below float16's own error near 1; their noise would fill a third of the room.
_MAP_STEPS = 1 << 14
# Rows further from 1 than this are a broken mask or kernel, not rounding.
_ROW_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_PER_TOKEN = ("key_mass", "row_sum", "position_mass")  # (layer, head, query or key, ...)


def record(
    path: Path,
    name: str,
    loaded: LoadedModel,
    prompts: list[Prompt],
    maps_max_tokens: int,
    positions_max_tokens: int = 0,
    too_long: str = "cut",
    max_tokens: int | None = None,
    keep: Keep | None = None,
) -> None:
    """Capture `prompts` with `loaded` (called `name` in the study) into the HDF5 file `path`.

    Prompts of similar length share a forward pass; maps are stored for prompts of at most `maps_max_tokens`, the
    attention that every position receives for those of at most `positions_max_tokens`. Prompts beyond the model's
    context are cut to it, or refused (see `within_context`), and all to `max_tokens`, if given. `keep`: means at these
    lengths are stored in place of the masses of every query.
    Raises StudyError naming model, layer and prompt when attention is not finite or does not sum to 1.
    """
    whole = encode(loaded, {p.id: p.text for p in prompts})
    token_ids = {p: ids[:max_tokens] for p, ids in within_context(loaded, whole, too_long).items()}
    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__, "h5py": h5py.__version__}
    attributes = {"model": name, **loaded.provenance, **versions, "python": platform.python_version()}
    if keep:
        attributes["keep"] = "lengths"
    decoded = cache(lambda token: loaded.tokenizer.decode([token]))
    texts = [_Text(p, ids := token_ids[p.id], [decoded(i) for i in ids], len(whole[p.id])) for p in prompts]
    large = _decoder_bytes(loaded.model) >= _LARGE_MODEL
    tokens = _LARGE_BATCH if large or loaded.model.device.type == "cuda" else _SMALL_BATCH
    limits = (maps_max_tokens, positions_max_tokens)
    with write_capture(path, attributes, KEY_CLASSES, prompts) as writer, watched(loaded.model, norms=True) as forward:
        for batch in tqdm(list(_batches(texts, tokens, limits)), desc=f"capture {name}", unit="batch"):
            _record_batch(writer, forward, name, loaded, batch, limits, keep)


@dataclass(frozen=True)
class _Text:
    """A prompt in a model's tokens; `whole`: how many its text has, of which these may be the first."""

    prompt: Prompt
    token_ids: list[int]
    tokens: list[str]
    whole: int


def _record_batch(
    writer: CaptureWriter,
    forward: Forward,
    name: str,
    loaded: LoadedModel,
    batch: list[_Text],
    limits: tuple[int, int],
    keep: Keep | None,
) -> None:
    lengths = [len(text.token_ids) for text in batch]
    width = max(*lengths, min(_LEAST_WIDTH, context_length(loaded.model) or _LEAST_WIDTH))
    padded = torch.tensor([text.token_ids + [0] * (width - n) for text, n in zip(batch, lengths, strict=True)])
    own = torch.arange(width) < torch.tensor(lengths)[:, None]  # (batch, query), False for padding
    layers: dict[int, dict[str, np.ndarray]] = {}

    def on_layer(layer: int, masses: Masses) -> None:
        layers[layer] = kept = _kept(masses, own)
        fault = _fault(kept["key_mass"], kept["row_error"], own.numpy(), _ROW_TOLERANCE[loaded.model.dtype])
        if fault is not None:
            row, what = fault
            raise StudyError(f"model {name!r}, layer {layer}, prompt {batch[row].prompt.id!r}: {what}")
        if masses.map is not None:
            maps = (masses.map * _MAP_STEPS).round_().div_(_MAP_STEPS).half().cpu().numpy()
            for text, n, attention in zip(batch, lengths, maps, strict=True):
                writer.add_map(text.prompt.id, attention[:, :n, :n])

    maps, positions = (max(lengths) <= limit for limit in limits)
    forward(padded, on_layer, maps=maps, counted=own if positions else None)
    first = next(iter(layers.values()))
    stacked = {name: np.stack([kept[name] for kept in layers.values()], axis=1) for name in first}
    row_errors = stacked.pop("row_error").max(1)
    for row, (text, n) in enumerate(zip(batch, lengths, strict=True)):
        arrays = {name: values[row] for name, values in stacked.items()}  # Each begins with the axis layer.
        arrays |= {name: arrays[name][:, :, :n] for name in _PER_TOKEN if name in arrays}
        capture = Capture(
            prompt=text.prompt.id,
            set=text.prompt.set,
            layers=np.array(list(layers)),
            token_ids=np.array(text.token_ids),
            tokens=text.tokens,
            text_tokens=text.whole,
            sink_mass=arrays["key_mass"][..., 0],
            row_sum_error=float(row_errors[row]),
            **arrays,
        )
        writer.add(keep.of(capture) if keep else capture)


def _kept(masses: Masses, own: torch.Tensor) -> dict[str, np.ndarray]:
    """What is stored of a layer besides maps, by name, each beginning with the axis batch.

    `own` (batch, query): not padding.
    """
    unknown = torch.full(masses.keys.shape[:2], torch.nan)  # (batch, head)
    kept = {"key_mass": masses.keys, "row_error": masses.row_error}
    kept |= {"activation": unknown[:, 0], "value_drain": unknown, "output_norm": unknown}
    kept["activation_channel"] = torch.full((len(own), CHANNELS), -1)
    kept["channel_value"] = torch.full((len(own), CHANNELS), torch.nan)
    if masses.row_sum is not None:
        kept["row_sum"] = masses.row_sum
    if masses.received is not None:
        later = own.flip(-1).cumsum(-1).flip(-1)[:, None] - 1.0  # (batch, 1, key)
        kept["position_mass"] = masses.received.cpu() / later.where(later > 0, torch.nan)
    if (norms := masses.norms) is not None:
        kept |= {"activation_channel": norms.channel, "channel_value": norms.channel_value}
        kept["activation"] = _first_over_others(norms.residual.cpu(), own)
        if norms.value is not None:
            kept["value_drain"] = _first_over_others(norms.value.cpu(), own[:, None])
        if norms.output is not None:
            kept["output_norm"] = (norms.output.cpu() * own[:, None]).sum(-1) / own.sum(-1, keepdim=True)
    return {name: values.cpu().numpy() for name, values in kept.items()}


def _first_over_others(norms: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The first number along the last axis over the median of the others that are no padding; NaN without others."""
    return norms[..., 0] / norms.where(own, torch.nan)[..., 1:].nanquantile(0.5, dim=-1)


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


def _batches(texts: list[_Text], tokens: int, limits: tuple[int, ...]) -> Iterable[list[_Text]]:
    """Texts by ascending length, filled up to a token budget; none within a limit are mixed with any beyond it."""
    batch: list[_Text] = []
    for text in sorted(texts, key=lambda text: (len(text.token_ids), text.prompt.id)):
        n = len(text.token_ids)
        first = len(batch[0].token_ids) if batch else n
        if batch and ((len(batch) + 1) * n > tokens or any(n > limit >= first for limit in limits)):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _decoder_bytes(model: PreTrainedModel) -> int:
    """Without embedding and head, of which an offloaded model holds other parts than one in memory."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    aside = {id(part) for module in ends for part in module.parameters()}
    return sum(part.numel() * part.itemsize for part in model.parameters() if id(part) not in aside)
