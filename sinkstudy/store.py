"""The HDF5 capture file: one group per prompt, written whole or not at all.

Layout (attributes of the file hold the schema version, provenance and `complete`)::

    /{prompt}/token_ids   (query,) int32
    /{prompt}/tokens      (query,) UTF-8 strings, each token decoded by itself
    /{prompt}/sink_mass   (layer, head, query) float32
    /{prompt}/key_mass    (layer, head, query, key_class) float32
    /{prompt}/row_sum     (layer, head, query) float32, only where rows sum to less than 1 (learned sinks)
    /{prompt}/attention   (layer, head, query, key) float16, only for prompts up to maps_max_tokens

Group attributes: `set`, `n_tokens`, `row_sum_error`. The dimension scale `layers` gives the true layer index of
each row, for models in which only some layers attend.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import StudyError
from sinkstudy.prompts import Prompt

SCHEMA = 1
_AXES = {
    "sink_mass": ("layer", "head", "query"),
    "row_sum": ("layer", "head", "query"),
    "key_mass": ("layer", "head", "query", "key_class"),
    "attention": ("layer", "head", "query", "key"),
}
# Fletcher-32 makes a flipped bit an error at reading instead of a wrong number.
_FILTERS = {"compression": "gzip", "compression_opts": 4, "shuffle": True, "fletcher32": True}


@dataclass(frozen=True)
class Capture:
    """One prompt's capture without its maps. `layers` (layer,) are true layer indices; `row_sum` None means 1."""

    prompt: str
    set: str
    token_ids: np.ndarray
    layers: np.ndarray
    sink_mass: np.ndarray
    row_sum: np.ndarray | None

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)


class CaptureWriter:
    """Context manager that writes a capture under a temporary name and renames it when it is complete and checked.

    On an exception the temporary file is removed and nothing appears under the final name.
    """

    def __init__(self, path: Path, attributes: Mapping[str, str | int | float], key_classes: tuple[str, ...]):
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._attributes = dict(attributes)
        self._key_classes = key_classes

    def __enter__(self) -> "CaptureWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = h5py.File(self._temporary, "w", libver=("v110", "v110"), track_order=True)
        self._file.attrs.update(self._attributes | {"schema": SCHEMA, "complete": False})
        self._file["key_classes"] = np.array(self._key_classes, dtype=h5py.string_dtype())
        self._file["key_classes"].make_scale("key_class")
        return self

    def add_prompt(self, prompt: Prompt, token_ids: list[int], tokens: list[str]) -> None:
        group = self._file.create_group(prompt.id)
        group.attrs.update({"set": prompt.set, "n_tokens": len(token_ids), "row_sum_error": 0.0})
        group["token_ids"] = np.array(token_ids, dtype=np.int32)
        group["token_ids"].dims[0].label = "query"
        group["tokens"] = np.array(tokens, dtype=h5py.string_dtype())
        group["tokens"].dims[0].label = "query"
        layers = group.create_dataset("layers", (0,), np.int32, maxshape=(None,))
        layers.make_scale("layer")

    def add_layer(
        self,
        prompt: str,
        layer: int,
        key_mass: np.ndarray,
        row_error: float,
        row_sum: np.ndarray | None = None,
        attention: np.ndarray | None = None,
    ) -> None:
        """Append one layer: `key_mass` (head, query, key_class) with the first key as class 0, and the like."""
        group = self._file[prompt]
        layers = group["layers"]
        layers.resize(len(layers) + 1, axis=0)
        layers[-1] = layer
        _append(group, "sink_mass", key_mass[..., 0], np.float32)
        _append(group, "key_mass", key_mass, np.float32)
        if row_sum is not None:
            _append(group, "row_sum", row_sum, np.float32)
        if attention is not None:
            _append(group, "attention", attention, np.float16)
        group.attrs["row_sum_error"] = max(group.attrs["row_sum_error"], row_error)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            # Closing a file whose disk is full raises again; the first error is the one worth reading.
            with suppress(Exception):
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        for group in _groups(self._file):
            group["key_mass"].dims[3].attach_scale(self._file["key_classes"])
            for name in _AXES.keys() & group.keys():
                group[name].dims[0].attach_scale(group["layers"])
        self._file.attrs["complete"] = True
        self._file.close()
        with self._temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        for _ in read_captures([self._temporary]):
            pass
        self._temporary.replace(self.path)


def read_captures(paths: list[Path]) -> Iterator[Capture]:
    """The captures of several files, one at a time, in file order and then in prompt order.

    Raises StudyError naming the file when it is not a complete capture of this schema or cannot be read.
    """
    for path in paths:
        with open_capture(path) as file:
            for group in _groups(file):
                yield _read_group(path, group)


def read_tokens(path: Path, prompt: str) -> list[str]:
    """The decoded tokens of one prompt."""
    with open_capture(path) as file:
        return [t.decode("utf-8", "replace") for t in file[prompt]["tokens"][()]]


def read_maps(path: Path, prompt: str, layer_row: int) -> np.ndarray | None:
    """One layer's maps (head, query, key) float16 by row of the layer axis, or None where none were stored."""
    with open_capture(path) as file:
        return file[prompt]["attention"][layer_row] if "attention" in file[prompt] else None


def read_provenance(path: Path | str) -> dict[str, str]:
    """The provenance attributes of a capture file, as text."""
    with open_capture(Path(path)) as file:
        return {name: str(value) for name, value in file.attrs.items()}


def open_capture(path: Path) -> h5py.File:
    """Open a capture for reading after checking that it is one."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StudyError(f"{path}: cannot be read as HDF5 ({error}); delete it and rerun to capture again.") from None
    if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
        file.close()
        raise StudyError(f"{path}: is not a complete capture of schema {SCHEMA}; delete it and rerun to capture again.")
    return file


def _groups(file: h5py.File) -> list[h5py.Group]:
    return [item for item in file.values() if isinstance(item, h5py.Group)]


def _append(group: h5py.Group, name: str, values: np.ndarray, dtype: type) -> None:
    if name not in group:
        group.create_dataset(
            name,
            (0, *values.shape),
            dtype,
            maxshape=(None, *values.shape),
            chunks=(1, *values.shape) if name != "attention" else (1, 1, *values.shape[1:]),
            **_FILTERS,
        )
        for axis, label in zip(group[name].dims, _AXES[name], strict=True):
            axis.label = label
    dataset = group[name]
    dataset.resize(len(dataset) + 1, axis=0)
    dataset[-1] = values


def _read_group(path: Path, group: h5py.Group) -> Capture:
    try:
        capture = Capture(
            prompt=group.name.lstrip("/"),
            set=group.attrs["set"],
            token_ids=group["token_ids"][()],
            layers=group["layers"][()],
            sink_mass=group["sink_mass"][()],
            row_sum=group["row_sum"][()] if "row_sum" in group else None,
        )
    except (OSError, KeyError) as error:
        raise StudyError(f"{path}: prompt {group.name!r} is damaged ({error}); delete the file and rerun.") from None
    if capture.sink_mass.shape[::2] != (len(capture.layers), capture.n_tokens):
        raise StudyError(f"{path}: prompt {group.name!r} has axes that do not fit; delete the file and rerun.")
    if not np.isfinite(capture.sink_mass).all():
        raise StudyError(f"{path}: prompt {group.name!r} holds values that are not finite; delete the file and rerun.")
    return capture
