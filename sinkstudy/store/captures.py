"""Capture files: written prompt by prompt; what is damaged or foreign is refused by name."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError, MisplacedFileError, reading
from sinkstudy.measures.captured import LAYOUT, Capture, is_attention
from sinkstudy.prompts import Prompt, prompt_digest
from sinkstudy.store.atomic import atomic_write
from sinkstudy.store.hdf5 import Disk, as_text, describe, fixed_length, new_file

SCHEMA = 7
_IDENTITY = ("model", "source", "revision", "quantization", "dtype", "bos", "keep")
_CHUNK_BYTES, _CHUNK_LAYERS = 1 << 20, 8
_COMPRESSED = {"compression": 2, "shuffle": True}
_SMOOTH = {"mean_sink_mass", "mean_key_mass"}  # They vary smoothly along the lengths, as masses of queries do not.


@contextmanager
def write_capture(
    path: Path, attributes: Mapping[str, str | int | float], key_classes: tuple[str, ...], prompts: Sequence[Prompt]
) -> Iterator["CaptureWriter"]:
    """Write the capture file `path` of `prompts`, stored in their order whichever is added first. On an exception,
    such as DamagedFileError for what does not read back, `path` stays as it was and nothing is left behind."""
    with atomic_write(path) as temporary:
        with new_file(temporary) as (file, disk):
            describe(file, {**attributes, "key_classes": key_classes, "schema": SCHEMA, "prompts": len(prompts)})
            for prompt in prompts:
                describe(file.create_group(prompt.id), {"set": prompt.set, "digest": prompt_digest(prompt)})
            yield CaptureWriter(file, disk)
            first = {int(group["token_ids"][0]) for group in file.values() if "token_ids" in group}
            describe(file, {"first_token_id": first.pop() if len(first) == 1 else -1, "complete": True})
        for _ in read_captures([temporary]):  # What cannot be read back as captures of all prompts gets no name.
            pass


class CaptureWriter:
    """For each prompt `add_map` for every layer, if its maps are to be stored, and then `add`."""

    def __init__(self, file: h5py.File, disk: Disk):
        self._file, self._disk = file, disk
        self._maps: dict[str, h5py.Dataset] = {}  # While it is open, HDF5 gathers the layers of a chunk in memory.

    def add_map(self, prompt: str, attention: np.ndarray) -> None:
        """The next layer's map (head, query, key), stored as float16."""
        if (maps := self._maps.get(prompt)) is None:
            grows = {"maxshape": (None, *attention.shape), **_COMPRESSED}
            maps = _store(self._file[prompt], "attention", np.empty((0, *attention.shape), np.float16), **grows)
            self._maps[prompt] = maps
        maps.resize(len(maps) + 1, axis=0)
        maps[-1] = attention.astype(maps.dtype)

    def add(self, capture: Capture) -> None:
        """Raises OSError when what was written so far did not reach the disk."""
        if self._disk.error:
            raise self._disk.error
        self._maps.pop(capture.prompt, None)
        layers = self._file.attrs.setdefault("layers", np.array(capture.layers, np.int32))
        if not np.array_equal(layers, capture.layers):
            raise RuntimeError(f"prompt {capture.prompt!r} has layers {capture.layers}, others {layers}")
        group = self._file[capture.prompt]
        for name, values in capture.arrays.items():
            _store(group, name, values, **(_COMPRESSED if name in _SMOOTH else {}))
        describe(group, {"text_tokens": capture.text_tokens, "row_sum_error": capture.row_sum_error})


class CaptureFile:
    """An open capture; its methods raise DamagedFileError where what they read is damaged.

    `attributes`: those of the file, as text; `keep` says whether of every query (queries) or means at some lengths.
    `layers`: true layer indices. `prompts`: the digest of each prompt by its id, in the order written. `identity`: the
    attributes in which all files of a model agree.
    """

    def __init__(self, path: Path, file: h5py.File):
        self.path, self._file = path, file
        with reading(path):
            if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
                raise DamagedFileError(path, f"it is not a complete capture of schema {SCHEMA}")
            self.attributes = {"keep": "queries"} | {name: as_text(value) for name, value in file.attrs.items()}
            self.identity = {name: self.attributes[name] for name in _IDENTITY if name in self.attributes}
            self.layers = np.asarray(file.attrs["layers"])
            self.prompts = {name: as_text(file[name].attrs["digest"]) for name in file}
            if len(self.prompts) != file.attrs["prompts"]:
                raise DamagedFileError(path, f"it holds {len(self.prompts)} of {file.attrs['prompts']} prompts")

    def shapes(self, prompt: str) -> dict[str, tuple[int, ...]]:
        """The shape of each array that is stored of a prompt, and of its maps as `attention`."""
        with reading(self.path):
            return {name: stored.shape for name, stored in self._file[prompt].items()}

    def capture(self, prompt: str) -> Capture:
        """What is stored of one prompt, without its maps."""
        with reading(self.path):
            group = self._file[prompt]
            measured = [name for name in group if name in LAYOUT and name != "attention"]
            arrays = {name: np.asarray(group[name], LAYOUT[name][0]) for name in measured}
            arrays["tokens"] = [as_text(token) for token in arrays["tokens"].tolist()]
            about = {name: group.attrs.get(name) for name in ("text_tokens", "row_sum_error")}
            about |= {"prompt": prompt, "set": as_text(group.attrs["set"]), "layers": self.layers}
            capture = Capture.of(arrays, **about)
            capture.check(key_classes=len(self._file.attrs["key_classes"]))
            return capture

    def maps(self, prompt: str, layer_row: int) -> np.ndarray:
        """One layer's maps (head, query, key) float16, by row of the layer axis."""
        with reading(self.path):
            maps, n = self._file[prompt]["attention"], len(self._file[prompt]["token_ids"])
            if maps.shape != (*self._file[prompt]["output_norm"].shape, n, n) or not is_attention(maps[layer_row]):
                raise DamagedFileError(self.path, f"the maps of prompt {prompt!r} are not attention to its tokens")
            return maps[layer_row]


@contextmanager
def open_capture(path: Path | str) -> Iterator[CaptureFile]:
    """A capture open for reading; what the block raises passes through. Raises DamagedFileError when the file is
    damaged or no complete capture."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DamagedFileError(path, "it is no regular file")
    with reading(path):
        file = h5py.File(path, "r")
    with file:
        yield CaptureFile(path, file)


def read_captures(paths: Iterable[Path | str]) -> Iterator[Capture]:
    """The captures of one model's files, one prompt at a time, in the order in which they were written.

    Raises DamagedFileError as `open_capture` does, and MisplacedFileError where two files are not of the same model,
    weights and settings, or hold the same prompt.
    """
    holders: dict[str, Path] = {}
    first: CaptureFile | None = None
    for path in paths:
        with open_capture(path) as file:
            first = first or file
            if file.identity != first.identity:
                raise MisplacedFileError(path, f"is not of the same model, weights and settings as {first.path}")
            for prompt in file.prompts:
                if prompt in holders:
                    raise MisplacedFileError(path, f"holds prompt {prompt!r}, as {holders[prompt]} does")
                holders[prompt] = file.path
                yield file.capture(prompt)


def _store(group: h5py.Group, name: str, values: np.ndarray | list[str], **settings: object) -> h5py.Dataset:
    dtype, axes = LAYOUT[name]
    values = fixed_length(values) if dtype is None else np.asarray(values, dtype)
    shape = (len(values) or _CHUNK_LAYERS, *values.shape[1:])  # Maps come layer by layer.
    is_large = math.prod(shape) * values.itemsize > _CHUNK_BYTES
    chunks = (1,) * (values.ndim - 2) + shape[-2:] if is_large else shape  # A large one is cut along its first axes.
    dataset = group.create_dataset(name, data=values, chunks=chunks, fletcher32=True, **settings)
    for axis, label in zip(dataset.dims, axes, strict=True):
        axis.label = label
    return dataset
