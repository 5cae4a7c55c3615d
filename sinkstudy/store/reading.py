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
from sinkstudy.store.arrays import read_packed, read_plain
from sinkstudy.store.seal import check_seal

SCHEMA = 5
LISTS = ("sets", "n_tokens", "row_sum_errors", "output_norm", "vocabulary_ids", "vocabulary", "offsets")
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

    `parts` names those that are needed, `sink_mass` or `key_mass` among them (the first key class is the mass on the
    first token).

    Raises DamagedFileError naming the file when it is not a complete capture of this schema or is damaged.
    """
    for path in paths:
        with open_capture(path) as file:
            handle, layers, norms = file.id.get_vfd_handle(), file.attrs["layers"], file.attrs["output_norm"]
            classes, names = len(file.attrs["key_classes"]), list(file.attrs["arrays"])
            wanted = {name: names.index(name) for name in (*parts, "row_sum") if name in names}
            lists = [file.attrs[name].tolist() for name in ("sets", "n_tokens", "offsets")]
            if not all(len(entries) == len(file) == file.attrs["prompts"] for entries in (*lists, norms)):
                raise DamagedFileError(path, "its lists are not of one entry per prompt")
            for prompt, of_set, n, offsets, norm in zip(list(file), *lists, norms, strict=True):
                masses = (*norm.shape, n)
                shapes = {"token_ids": (n,), "key_mass": (*masses, classes)}
                arrays = dict.fromkeys(_TYPES)
                for name, column in wanted.items():
                    if offset := offsets[column]:
                        arrays[name] = read_plain(handle, offset, shapes.get(name, masses), _TYPES[name])
                    else:
                        arrays[name] = read_packed(file.id, f"{prompt}/{name}", _TYPES[name])
                if arrays["sink_mass"] is None:
                    arrays["sink_mass"] = arrays["key_mass"][..., 0]
                _check(path, prompt, arrays, masses)
                norm = norm if "output_norm" in parts else None
                yield Capture(prompt=prompt, set=of_set, layers=layers, output_norm=norm, **arrays)


def read_tokens(path: Path, prompt: str) -> list[str]:
    """The decoded tokens of one prompt."""
    with open_capture(path) as file:
        decoded = dict(zip(file.attrs["vocabulary_ids"].tolist(), file.attrs["vocabulary"].tolist(), strict=True))
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
            check_seal(path, file.id.get_vfd_handle())
            if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
                raise DamagedFileError(path, f"is not a complete capture of schema {SCHEMA}")
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        # With an error number it is the system that failed (no such file, a lock, a lost mount), else the content.
        if isinstance(error, OSError) and error.errno is not None and error.errno != errno.EISDIR:
            raise StudyError(
                f"{path}: cannot be opened ({os.strerror(error.errno)}); mend that and run again."
            ) from None
        reason = " ".join(str(error).strip("'\"").split())
        raise DamagedFileError(path, f"cannot be read as a capture ({reason})") from None


def _check(path: Path, prompt: str, arrays: dict[str, np.ndarray | None], masses: tuple[int, ...]) -> None:
    token_ids, sink_mass = arrays["token_ids"], arrays["sink_mass"]
    if sink_mass.shape != masses or (token_ids is not None and len(token_ids) != masses[-1]):
        raise DamagedFileError(path, f"prompt {prompt!r} has axes that do not fit each other")
    if not np.isfinite(sink_mass).all():
        raise DamagedFileError(path, f"prompt {prompt!r} holds values that are not finite")


def _group(path: Path, file: h5py.File, prompt: str) -> h5py.Group:
    if prompt not in file:
        raise StudyError(f"{path}: holds no prompt {prompt!r}; its prompts are {', '.join(file)}.")
    return file[prompt]
