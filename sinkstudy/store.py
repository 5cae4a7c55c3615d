"""The HDF5 capture file: one group per prompt, written whole or not at all.

Layout (attributes of the file hold the schema version, provenance and `complete`)::

    /{prompt}/token_ids    (query,) int32
    /{prompt}/tokens       (query,) UTF-8 strings, each token decoded by itself
    /{prompt}/layers       (layer,) int32, true layer indices: in some models only some layers attend
    /{prompt}/sink_mass    (layer, head, query) float32
    /{prompt}/key_mass     (layer, head, query, key_class) float32; the classes are its attribute `key_classes`
    /{prompt}/output_norm  (layer, head) float32, mean over queries; NaN where it could not be measured
    /{prompt}/row_sum      (layer, head, query) float32, only where rows sum to less than 1 (learned sinks)
    /{prompt}/attention    (layer, head, query, key) float16 in steps of 2^-14, only up to maps_max_tokens

Group attributes: `set`, `n_tokens`, `row_sum_error`.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError, StudyError
from sinkstudy.prompts import Prompt

SCHEMA = 1
_AXES = ("layer", "head", "query", "key")
# Fletcher-32 makes a flipped bit an error at reading instead of a wrong number.
_CHECKED = {"fletcher32": True}
_PACKED = {"compression": "gzip", "compression_opts": 4, "shuffle": True, "fletcher32": True}
_CHUNK_BYTES = 1 << 20
# Maps are rounded to multiples of 2^-14, below float16's own error near 1; their noise would fill a third of the room.
_MAP_STEPS = 1 << 14
_PACK_FROM_BYTES = 1 << 14  # packing smaller arrays costs more time than it saves room


@dataclass(frozen=True)
class LayerRecord:
    """What is stored of one layer of one prompt, see the layout above; the first key class is the first token."""

    key_mass: np.ndarray
    output_norm: np.ndarray
    row_error: float
    row_sum: np.ndarray | None = None
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Capture:
    """One prompt's capture without its maps. `layers` are true layer indices; `row_sum` None means 1."""

    prompt: str
    set: str
    token_ids: np.ndarray
    layers: np.ndarray
    sink_mass: np.ndarray
    key_mass: np.ndarray
    output_norm: np.ndarray
    row_sum: np.ndarray | None

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)


@dataclass
class _Pending:
    """One prompt's layers so far. Maps go to disk as they come; the rest is linear in length and waits."""

    prompt: Prompt
    token_ids: list[int]
    tokens: list[str]
    group: h5py.Group
    maps: h5py.Dataset | None = None
    layers: list[int] = field(default_factory=list)
    records: list[LayerRecord] = field(default_factory=list)


class CaptureWriter:
    """Context manager that writes a capture under a temporary name and renames it when it is complete and checked.

    On an exception the temporary file is removed and nothing appears under the final name.
    """

    def __init__(self, path: Path, attributes: Mapping[str, str | int | float], key_classes: tuple[str, ...]):
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._attributes = dict(attributes)
        self._key_classes = list(key_classes)
        self._pending: dict[str, _Pending] = {}

    def __enter__(self) -> "CaptureWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._temporary, "w", libver=("v110", "v110"), track_order=True)
        try:
            self._file.attrs.update(self._attributes | {"schema": SCHEMA, "complete": False})
        except BaseException:
            self._discard()
            raise
        return self

    def begin(self, prompt: Prompt, token_ids: list[int], tokens: list[str]) -> None:
        """Open a prompt's group; its layers follow in ascending order, then `finish`."""
        self._pending[prompt.id] = _Pending(prompt, token_ids, tokens, self._file.create_group(prompt.id))

    def add_layer(self, prompt: str, layer: int, record: LayerRecord) -> None:
        pending = self._pending[prompt]
        if record.attention is not None:
            heads, n = record.attention.shape[:2]
            if pending.maps is None:
                pending.maps = _create_maps(pending.group, heads, n)
            pending.maps.resize(len(pending.layers) + 1, axis=0)
            pending.maps[len(pending.layers)] = np.round(record.attention * _MAP_STEPS) / _MAP_STEPS
        pending.layers.append(layer)
        pending.records.append(replace(record, attention=None))

    def finish(self, prompt: str) -> None:
        """Write what waited and let go of it."""
        pending = self._pending.pop(prompt)
        group, records = pending.group, pending.records
        group.attrs["set"] = pending.prompt.set
        group.attrs["n_tokens"] = len(pending.token_ids)
        group.attrs["row_sum_error"] = max(record.row_error for record in records)
        tokens = [token.encode("utf-8") for token in pending.tokens]
        strings = h5py.string_dtype("utf-8", max(1, *map(len, tokens)))
        key_mass = np.stack([record.key_mass for record in records]).astype(np.float32)
        norms = np.stack([record.output_norm for record in records]).astype(np.float32)
        _create(group, "token_ids", np.array(pending.token_ids, np.int32), _AXES[2:3])
        _create(group, "tokens", np.array(tokens, strings), _AXES[2:3])
        _create(group, "layers", np.array(pending.layers, np.int32), _AXES[:1])
        _create(group, "output_norm", norms, _AXES[:2])
        _create(group, "sink_mass", key_mass[..., 0], _AXES[:3])
        _create(group, "key_mass", key_mass, (*_AXES[:3], "key_class"))
        group["key_mass"].attrs["key_classes"] = self._key_classes
        if records[0].row_sum is not None:
            row_sum = np.stack([record.row_sum for record in records]).astype(np.float32)
            _create(group, "row_sum", row_sum, _AXES[:3])

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            self._discard()

    def _discard(self) -> None:
        # Closing a file whose disk is full raises again; the first error is the one worth reading.
        with suppress(Exception):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _complete(self) -> None:
        if self._pending:
            raise RuntimeError(f"prompts begun but not finished: {', '.join(self._pending)}")
        self._file.attrs["prompts"] = len(self._file)
        self._file.attrs["complete"] = True
        self._file.close()
        with self._temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        for _ in read_captures([self._temporary]):
            pass
        self._temporary.replace(self.path)


def read_captures(paths: list[Path]) -> Iterator[Capture]:
    """The captures of several files, one at a time, in the order in which they were written.

    Raises StudyError naming the file when it is not a complete capture of this schema or is damaged.
    """
    for path in paths:
        with open_capture(path) as file:
            for name in list(file):
                yield _read_group(path, name, file[name])


def read_tokens(path: Path, prompt: str) -> list[str]:
    """The decoded tokens of one prompt."""
    with open_capture(path) as file:
        return [token.decode("utf-8", "replace") for token in _group(path, file, prompt)["tokens"][()]]


def read_maps(path: Path, prompt: str, layer_row: int) -> np.ndarray | None:
    """One layer's maps (head, query, key) float16 by row of the layer axis, or None where none were stored."""
    with open_capture(path) as file:
        group = _group(path, file, prompt)
        return group["attention"][layer_row] if "attention" in group else None


def read_provenance(path: Path | str) -> dict[str, str]:
    """The provenance attributes of a capture file, as text."""
    with open_capture(Path(path)) as file:
        return {name: str(value) for name, value in file.attrs.items()}


@contextmanager
def open_capture(path: Path) -> Iterator[h5py.File]:
    """A capture open for reading. Raises DamagedFileError, here or at a later read, when it is none or is damaged."""
    try:
        with h5py.File(path, "r") as file:
            if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
                raise DamagedFileError(path, f"is not a complete capture of schema {SCHEMA}")
            if len(file) != file.attrs["prompts"]:
                raise DamagedFileError(path, f"holds {len(file)} of {file.attrs['prompts']} prompts")
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        # With an error number it is the system that failed (no such file, a lock, a lost mount), else the content.
        if isinstance(error, OSError) and error.errno is not None and error.errno != errno.EISDIR:
            raise StudyError(
                f"{path}: cannot be opened ({os.strerror(error.errno)}); mend that and run again."
            ) from None
        reason = " ".join(str(error).strip("'\"").split())
        raise DamagedFileError(path, f"cannot be read as a capture ({reason})") from None


def _group(path: Path, file: h5py.File, prompt: str) -> h5py.Group:
    if prompt not in file:
        raise StudyError(f"{path}: holds no prompt {prompt!r}; its prompts are {', '.join(file)}.")
    return file[prompt]


def _create_maps(group: h5py.Group, heads: int, n: int) -> h5py.Dataset:
    """An `attention` dataset without layers yet, that grows a layer at a time."""
    together = max(1, min(heads, _CHUNK_BYTES // (2 * n * n)))
    shape, chunks = (heads, n, n), (1, together, n, n)
    maps = group.create_dataset("attention", (0, *shape), np.float16, maxshape=(None, *shape), chunks=chunks, **_PACKED)
    _label(maps, _AXES)
    return maps


def _create(group: h5py.Group, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    chunks = values.shape if values.nbytes <= _CHUNK_BYTES else (1, *values.shape[1:])
    filters = _PACKED if values.nbytes >= _PACK_FROM_BYTES else _CHECKED
    _label(group.create_dataset(name, data=values, chunks=chunks, **filters), axes)


def _label(dataset: h5py.Dataset, axes: tuple[str, ...]) -> None:
    # h5py's `dims[i].label` does the same behind three look-ups, which add up over thousands of prompts.
    for i, label in enumerate(axes):
        h5py.h5ds.set_label(dataset.id, i, label.encode())


def _read_group(path: Path, name: str, group: h5py.Group) -> Capture:
    capture = Capture(
        prompt=name,
        set=group.attrs["set"],
        token_ids=group["token_ids"][()],
        layers=group["layers"][()],
        sink_mass=group["sink_mass"][()],
        key_mass=group["key_mass"][()],
        output_norm=group["output_norm"][()],
        row_sum=group["row_sum"][()] if "row_sum" in group else None,
    )
    if capture.sink_mass.shape[::2] != (len(capture.layers), capture.n_tokens):
        raise DamagedFileError(path, f"prompt {name!r} has axes that do not fit each other")
    if not np.isfinite(capture.sink_mass).all():
        raise DamagedFileError(path, f"prompt {name!r} holds values that are not finite")
    return capture
