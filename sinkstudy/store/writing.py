"""Writing a capture file, prompt by prompt, under a temporary name until it is complete."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.prompts import Prompt, prompt_digest
from sinkstudy.store.atomic import atomic_write
from sinkstudy.store.reading import LAYOUT, SCHEMA, read_captures

# HDF5 1.10's format is the oldest that checksums all headers, and the newest that its command-line tools mostly read.
LIBVER = ("v110", "v110")
_CHUNK_BYTES = 1 << 20
_COMPRESSED = {"compression": 2, "shuffle": True}
_MEANS = {"mean_sink_mass", "mean_key_mass"}  # smooth along the lengths, unlike the masses of single queries


@contextmanager
def write_capture(
    path: Path, attributes: Mapping[str, str | int | float], key_classes: tuple[str, ...]
) -> Iterator["CaptureWriter"]:
    """Write the capture file `path`. On an exception nothing is left behind, and `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        with Disk(temporary, "w+") as disk:
            with h5py.File(disk, "w", libver=LIBVER, track_order=True) as file:
                describe(file, {**attributes, "key_classes": key_classes, "schema": SCHEMA, "complete": False})
                writer = CaptureWriter(file, disk)
                yield writer
                writer.complete()
            disk.check()
        for _ in read_captures([temporary]):  # What cannot be read back whole never gets the name.
            pass


class CaptureWriter:
    """For each prompt `begin`, `add_map` for every layer if its maps are to be stored, and `finish`.

    Prompts are stored in the order in which they began, and may be finished in any.
    """

    def __init__(self, file: h5py.File, disk: "Disk"):
        self._file, self._disk = file, disk
        self._layers: list[int] | None = None
        self._maps: dict[str, list[np.ndarray]] = {}  # of each prompt the latest layers, less than a chunk of them

    def begin(self, prompt: Prompt, token_ids: list[int], tokens: list[str], text_tokens: int | None = None) -> None:
        """Make a prompt's group; `text_tokens`: of the whole text, where it was cut to the context."""
        group = self._file.create_group(prompt.id)
        about = {"set": prompt.set, "digest": prompt_digest(prompt), "text_tokens": text_tokens or len(token_ids)}
        describe(group, about)
        _store(group, "token_ids", token_ids)
        _store(group, "tokens", text(tokens))

    def add_map(self, prompt: str, attention: np.ndarray) -> None:
        """The next layer's map (head, query, key), stored as float16."""
        held = self._maps.setdefault(prompt, [])
        held.append(attention.astype(np.float16))
        if (len(held) + 1) * held[0].nbytes > _CHUNK_BYTES:
            self._store_maps(prompt)

    def finish(self, prompt: str, layers: list[int], row_error: float, **arrays: np.ndarray) -> None:
        """Write the rest of a prompt: `arrays` by their names in `LAYOUT`, None where there is none. `sink_mass` is the
        first class of `key_mass`. `layers`: true indices along the layer axis, the same for all prompts of a file.

        Raises OSError when what was written so far did not reach the disk.
        """
        self._disk.check()
        self._store_maps(prompt)
        self._layers = self._layers or layers
        if layers != self._layers:
            raise RuntimeError(f"prompt {prompt!r} has layers {layers}, others {self._layers}")
        if "key_mass" in arrays:
            arrays["sink_mass"] = arrays["key_mass"][..., 0]
        for name in sorted(arrays, key=list(LAYOUT).index):
            if arrays[name] is not None:
                _store(self._file[prompt], name, arrays[name], **(_COMPRESSED if name in _MEANS else {}))
        describe(self._file[prompt], {"row_sum_error": row_error})

    def _store_maps(self, prompt: str) -> None:
        """Append the layers that are held to the prompt's maps: as many at once as share a chunk."""
        if held := self._maps.pop(prompt, None):
            group, layers = self._file[prompt], np.stack(held)
            if "attention" in group:
                group["attention"].resize(len(group["attention"]) + len(layers), axis=0)
                group["attention"][-len(layers) :] = layers
            else:
                _store(group, "attention", layers, maxshape=(None, *layers.shape[1:]), **_COMPRESSED)

    def complete(self) -> None:
        """Describe the file as a whole and mark it complete."""
        first = {int(group["token_ids"][0]) for group in self._file.values()}
        self._file.attrs["first_token_id"] = first.pop() if len(first) == 1 else -1
        self._file.attrs["layers"] = np.array(self._layers or [], np.int32)
        self._file.attrs["prompts"] = len(self._file)
        self._file.attrs["complete"] = True


class Disk(io.FileIO):
    """The file under an HDF5 file. HDF5 ends the process by a segmentation fault when it cannot write what is left at
    closing, so it never learns of a full disk: the first error is kept for `check` to raise."""

    error: OSError | None = None

    def write(self, data: memoryview) -> int:
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return size if self.error else super().truncate(size)
        except OSError as error:
            self.error = error
            return size

    def check(self) -> None:
        if self.error:
            raise self.error


def _store(group: h5py.Group, name: str, values: np.ndarray | list[int], **settings: object) -> None:
    dtype, axes = LAYOUT[name]
    values = np.asarray(values, dtype)
    dataset = group.create_dataset(name, data=values, chunks=_chunk(values), fletcher32=True, **settings)
    for axis, label in zip(dataset.dims, axes, strict=True):
        axis.label = label


def _chunk(values: np.ndarray) -> tuple[int, ...]:
    """As many of the last axes as fit in _CHUNK_BYTES, and a part of the axis before them."""
    shape, size = [], values.itemsize
    for length in reversed(values.shape):
        shape.append(max(1, min(length, _CHUNK_BYTES // size)))
        size *= shape[-1]
    return tuple(reversed(shape))


def describe(item: h5py.Group, attributes: Mapping[str, object]) -> None:
    for name, value in attributes.items():
        item.attrs[name] = text(value) if isinstance(value, str | tuple) else value


def text(words: str | tuple[str, ...] | list[str]) -> np.ndarray:
    encoded = np.char.encode(words, "utf-8")
    return encoded.astype(h5py.string_dtype("utf-8", max(1, encoded.itemsize)))
