"""Reading capture files: whole prompts, single maps, provenance; whatever is damaged is refused by name."""

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError, StudyError
from sinkstudy.store.arrays import read_array
from sinkstudy.store.heaps import check_heaps
from sinkstudy.store.lists import LISTS, read_list

SCHEMA = 4
PARTS = ("token_ids", "sink_mass", "key_mass", "output_norm")
_TYPES = {"token_ids": np.int32, "sink_mass": np.float32, "key_mass": np.float32, "row_sum": np.float32}


@dataclass(frozen=True)
class Capture:
    """One prompt's capture without its maps.

    `layers` are true layer indices; `row_sum` None means 1; `token_ids`, `key_mass` and `output_norm` are None
    where they were not asked for.
    """

    prompt: str
    set: str
    token_ids: np.ndarray | None
    layers: np.ndarray
    sink_mass: np.ndarray
    key_mass: np.ndarray | None
    output_norm: np.ndarray | None
    row_sum: np.ndarray | None

    @property
    def n_tokens(self) -> int:
        return self.sink_mass.shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.sink_mass, self.key_mass, self.row_sum) if part is not None)


def read_captures(paths: list[Path], *, parts: Collection[str] = PARTS) -> Iterator[Capture]:
    """The captures of several files, one at a time, in the order in which they were written.

    Of short prompts each dataset takes as long to open as all else: `parts` names those that are needed, `sink_mass`
    or `key_mass` among them (the first key class is the mass on the first token).

    Raises DamagedFileError naming the file when it is not a complete capture of this schema or is damaged.
    """
    for path in paths:
        with open_capture(path) as file:
            layers, names = file.attrs["layers"], list(file)
            sets = read_list(path, file, "sets").tolist()
            norms = read_list(path, file, "output_norm") if "output_norm" in parts else [None] * len(names)
            if not len(sets) == len(norms) == len(names):
                raise DamagedFileError(path, "its lists are not of one entry per prompt")
            datasets = [part for part in parts if part in _TYPES]
            if names and "row_sum" in file[names[0]]:  # all of a model's prompts have them, or none
                datasets.append("row_sum")
            for name, of_set, norm in zip(names, sets, norms, strict=True):
                arrays = _read(path, file, name, layers, datasets)
                yield Capture(prompt=name, set=of_set, layers=layers, output_norm=norm, **arrays)


def read_tokens(path: Path, prompt: str) -> list[str]:
    """The decoded tokens of one prompt."""
    with open_capture(path) as file:
        words = read_list(path, file, "vocabulary").tolist()
        decoded = dict(zip(read_list(path, file, "vocabulary_ids").tolist(), words, strict=True))
        return [decoded[token].decode() for token in _group(path, file, prompt)["token_ids"][()].tolist()]


def read_maps(path: Path, prompt: str, layer_row: int) -> np.ndarray | None:
    """One layer's maps (head, query, key) float16 by row of the layer axis, or None where none were stored."""
    with open_capture(path) as file:
        group = _group(path, file, prompt)
        return group["attention"][layer_row] if "attention" in group else None


def read_provenance(path: Path | str) -> dict[str, str]:
    """The attributes of a capture file as text, without its lists of prompts and tokens."""
    with open_capture(Path(path)) as file:
        return {name: str(file.attrs[name]) for name in file.attrs if name not in LISTS}


@contextmanager
def open_capture(path: Path) -> Iterator[h5py.File]:
    """A capture open for reading. Raises DamagedFileError, here or at a later read, when it is none or is damaged."""
    try:
        with h5py.File(path, "r") as file:
            if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
                raise DamagedFileError(path, f"is not a complete capture of schema {SCHEMA}")
            check_heaps(path, file)
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


def _read(
    path: Path, file: h5py.File, name: str, layers: np.ndarray, datasets: list[str]
) -> dict[str, np.ndarray | None]:
    """The arrays of one prompt's `Capture`."""
    arrays = dict.fromkeys(_TYPES)
    try:
        arrays |= {part: read_array(file.id, f"{name}/{part}", _TYPES[part]) for part in datasets}
    except ValueError as error:  # what h5py's low-level calls make of a damaged header
        raise DamagedFileError(path, f"prompt {name!r} cannot be read ({error})") from None
    if arrays["sink_mass"] is None:
        arrays["sink_mass"] = arrays["key_mass"][..., 0]
    token_ids, sink_mass = arrays["token_ids"], arrays["sink_mass"]
    if len(sink_mass) != len(layers) or (token_ids is not None and len(token_ids) != sink_mass.shape[-1]):
        raise DamagedFileError(path, f"prompt {name!r} has axes that do not fit each other")
    if not np.isfinite(sink_mass).all():
        raise DamagedFileError(path, f"prompt {name!r} holds values that are not finite")
    return arrays
