"""Writing a capture file: under a temporary name, checked, then renamed."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5g, h5p

from sinkstudy.prompts import Prompt
from sinkstudy.store.arrays import AXES, ArrayWriter, Maps
from sinkstudy.store.disk import Disk
from sinkstudy.store.reading import SCHEMA, open_capture
from sinkstudy.store.seal import seal
from sinkstudy.store.temporary import temporary_for


@dataclass(frozen=True)
class PromptRecord:
    """What is stored of one prompt but for its maps, see the layout; the first key class is the first token.

    `key_mass` (layer, head, query, key_class), `output_norm` (layer, head) and `row_sum` (layer, head, query), all
    stored as float32. `layers`: the true layer index along the layer axis, the same for all prompts of a file.
    """

    layers: list[int]
    key_mass: np.ndarray
    output_norm: np.ndarray
    row_error: float
    row_sum: np.ndarray | None = None


@dataclass
class _Begun:
    token_ids: list[int]
    group: h5g.GroupID
    maps: Maps | None = None


@dataclass(frozen=True)
class _Finished:
    """What the lists of the file say of a prompt."""

    n_tokens: int
    row_error: float
    output_norm: np.ndarray
    offsets: dict[str, int]


class CaptureWriter:
    """Context manager that writes a capture under a temporary name and renames it when it is complete and checked.

    On an exception the temporary file is removed and nothing appears under the final name.
    """

    def __init__(self, path: Path, attributes: Mapping[str, str | int | float], key_classes: tuple[str, ...]):
        self.path = path
        self._attributes = {**attributes, "schema": SCHEMA, "complete": False, "key_classes": list(key_classes)}
        self._layers: list[int] | None = None
        self._begun: dict[str, _Begun] = {}
        self._sets: dict[str, str] = {}
        self._finished: dict[str, _Finished] = {}
        self._vocabulary: dict[int, str] = {}

    def __enter__(self) -> "CaptureWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_for(self.path)
        self._disk = Disk(self._temporary)
        self._arrays = ArrayWriter(self._disk)
        self._file = h5py.File(self._disk, "w", libver=("v110", "v110"), track_order=True)
        self._names = h5p.create(h5p.LINK_CREATE)
        self._names.set_char_encoding(h5py.h5t.CSET_UTF8)
        self._groups = h5p.create(h5p.GROUP_CREATE)
        self._groups.set_obj_track_times(False)  # the same captures are the same bytes
        try:
            self._file.attrs.update(self._attributes)
        except BaseException:
            self._discard()
            raise
        return self

    def begin(self, prompt: Prompt, token_ids: list[int], tokens: list[str]) -> None:
        """Open a prompt's group; its maps follow if they are to be stored, then `finish`."""
        group = h5g.create(self._file.id, prompt.id.encode(), self._names, self._groups)
        self._begun[prompt.id] = _Begun(token_ids, group)
        self._sets[prompt.id] = prompt.set
        self._vocabulary |= zip(token_ids, tokens, strict=True)

    def add_map(self, prompt: str, attention: np.ndarray) -> None:
        """The next layer's map (head, query, key), packed as float16 at once."""
        begun = self._begun[prompt]
        if begun.maps is None:
            begun.maps = Maps(*attention.shape[:2])
        begun.maps.add_layer(attention)

    def finish(self, prompt: str, record: PromptRecord) -> None:
        """Write a prompt and let go of it. Raises OSError when what was written so far did not reach the disk."""
        if self._disk.error:
            raise self._disk.error
        begun = self._begun.pop(prompt)
        if record.layers != (self._layers or record.layers):
            raise RuntimeError(f"prompt {prompt!r} has layers {record.layers}, others {self._layers}")
        self._layers = record.layers
        group, tokens = begun.group, begun.token_ids
        key_mass = np.ascontiguousarray(record.key_mass, np.float32)
        if key_mass.shape[2] != len(tokens):
            raise RuntimeError(f"prompt {prompt!r} has {len(tokens)} tokens, but masses of {key_mass.shape[2]} queries")
        if not np.isfinite(key_mass).all():
            raise RuntimeError(f"prompt {prompt!r} has masses that are not finite")
        arrays = {
            "token_ids": (np.array(tokens, np.int32), AXES[2:3]),
            "sink_mass": (key_mass[..., 0], AXES[:3]),
            "key_mass": (key_mass, (*AXES[:3], "key_class")),
        }
        if record.row_sum is not None:
            arrays["row_sum"] = (np.asarray(record.row_sum, np.float32), AXES[:3])
        offsets = {name: self._arrays.write(group, name, *array) for name, array in arrays.items()}
        if begun.maps is not None:
            self._arrays.write_maps(group, begun.maps)
        self._finished[prompt] = _Finished(len(tokens), record.row_error, record.output_norm, offsets)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            self._discard()

    def _discard(self) -> None:
        # Whatever HDF5 makes of a write that went nowhere, the first error is the one worth reading.
        with suppress(Exception):
            self._file.close()
        self._disk.close()
        self._temporary.unlink(missing_ok=True)

    def _complete(self) -> None:
        if self._begun:
            raise RuntimeError(f"prompts begun but not finished: {', '.join(self._begun)}")
        words = [token.encode() for token in self._vocabulary.values()]
        rows = [self._finished[prompt] for prompt in self._sets]
        arrays = list(rows[0].offsets) if rows else []
        self._file.attrs.update(
            {
                "sets": np.array(list(self._sets.values()), h5py.string_dtype()),
                "n_tokens": np.array([row.n_tokens for row in rows], np.int32),
                "row_sum_errors": np.array([row.row_error for row in rows], float),
                "output_norm": np.array([row.output_norm for row in rows], np.float32),
                "vocabulary_ids": np.array(list(self._vocabulary), np.int32),
                "vocabulary": np.array(words, h5py.string_dtype("utf-8", max(map(len, words), default=0) or 1)),
                "offsets": np.array([list(row.offsets.values()) for row in rows], np.int64),
                "arrays": arrays,
                "layers": np.array(self._layers or [], np.int32),
                "prompts": len(rows),
                "complete": True,
            }
        )
        self._file.close()
        if self._disk.error:
            raise self._disk.error
        self._disk.close()
        seal(self._temporary, self._arrays.packed)
        with open_capture(self._temporary):  # every stage that reads checks the content anew
            pass
        self._temporary.replace(self.path)
