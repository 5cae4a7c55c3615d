"""Reading capture files: what is damaged, foreign or not the one expected is refused by name."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, get_origin, get_type_hints

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError, StudyError
from sinkstudy.prompts import combined_digest
from sinkstudy.store.kept import Kept, Received

SCHEMA = 7
_LARGEST_MASS = 1.1  # rows of half precision sum to 1 up to 0.05
IDENTITY = ("model", "source", "revision", "quantization", "dtype", "bos", "keep")


@dataclass(frozen=True)
class Capture:
    """One prompt's capture without its maps, with type and axes of what is stored. What could not be measured is NaN,
    what is not stored is None.

    `layers`: true layer indices. `row_sum`: only where rows sum to less than 1 (learned sinks). `activation`: the norm
    of the first token's residual entering a layer over the median of the others' norms; `activation_channel`,
    `channel_value`: its largest channels. `value_drain`: the same ratio for the values that a head reads.
    `position_mass`: the mean, over the queries after a key, of their attention to it, up to positions_max_tokens; NaN
    for the last key. `text_tokens`: of the whole text, where it was cut to the model's context. `kept` stands in place
    of `sink_mass`, `key_mass` and `row_sum`, and `received` of `position_mass`, where a capture keeps lengths.
    """

    prompt: str
    set: str
    layers: np.ndarray
    token_ids: Annotated[np.ndarray, np.int32, "query"]
    tokens: Annotated[list[str], None, "query"]
    sink_mass: Annotated[np.ndarray | None, np.float32, "layer head query"]
    key_mass: Annotated[np.ndarray | None, np.float32, "layer head query key_class"]
    output_norm: Annotated[np.ndarray, np.float32, "layer head"]
    row_sum: Annotated[np.ndarray | None, np.float32, "layer head query"] = None
    activation: Annotated[np.ndarray | None, np.float32, "layer"] = None
    activation_channel: Annotated[np.ndarray | None, np.int32, "layer channel"] = None
    channel_value: Annotated[np.ndarray | None, np.float32, "layer channel"] = None
    value_drain: Annotated[np.ndarray | None, np.float32, "layer head"] = None
    position_mass: Annotated[np.ndarray | None, np.float32, "layer head key"] = None
    text_tokens: int | None = None
    kept: Kept | None = None
    received: Received | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        held = [*vars(self).values(), *(vars(self.kept).values() if self.kept else ())]
        return sum(one.nbytes for one in held if isinstance(one, np.ndarray))


# Type and axes of each dataset of a prompt, in the order written; `attention` is there only up to maps_max_tokens.
LAYOUT = {
    name: (hint.__metadata__[0], tuple(hint.__metadata__[1].split()))
    for part in (Capture, Kept, Received)
    for name, hint in get_type_hints(part, include_extras=True).items()
    if get_origin(hint) is Annotated
} | {"attention": (np.float16, ("layer", "head", "query", "key"))}


@dataclass(frozen=True)
class Expected:
    """Which captures a reader is to find.

    `attributes`: what the files must say of themselves. `shards`: by the name of a file without its ending, the digest
    of its prompts (`sinkstudy.prompts.digest`).
    """

    attributes: Mapping[str, str]
    shards: Mapping[str, str]

    def check(self, file: "CaptureFile") -> None:
        """Raise DamagedFileError naming what is not as expected."""
        for name, expected in self.attributes.items():
            found = file.attributes.get(name)
            if found != str(expected):
                raise DamagedFileError(file.path, f"its {name} is {found!r}, where the study has {str(expected)!r}")
        if combined_digest(file.prompts.items()) != self.shards.get(file.path.stem):
            raise DamagedFileError(file.path, f"its prompts are not those of the study's shard {file.path.stem}")


class CaptureFile:
    """An open capture; its methods raise DamagedFileError where what they read is damaged.

    `attributes`: those of the file, as text; `keep` says whether of every query (queries) or means at some lengths.
    `layers`: true layer indices. `prompts`: the digest of each prompt by its id, in the order written.
    """

    def __init__(self, path: Path, file: h5py.File):
        self.path, self._file = path, file
        with reading(path):
            if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
                raise DamagedFileError(path, f"it is not a complete capture of schema {SCHEMA}")
            self.attributes = {"keep": "queries"} | {name: _text(value) for name, value in file.attrs.items()}
            self.layers = np.asarray(file.attrs["layers"])
            self.prompts = {name: _text(file[name].attrs["digest"]) for name in file}
            if len(self.prompts) != file.attrs["prompts"]:
                raise DamagedFileError(path, f"it holds {len(self.prompts)} of {file.attrs['prompts']} prompts")

    def shapes(self, prompt: str) -> dict[str, tuple[int, ...]]:
        """The shape of each array that is stored of a prompt, see `LAYOUT`."""
        with reading(self.path):
            return {name: self._file[prompt][name].shape for name in self._file[prompt]}

    def capture(self, prompt: str) -> Capture:
        """What is stored of one prompt, without its maps."""
        with reading(self.path):
            group = self._file[prompt]
            stored = (LAYOUT.keys() - {"attention"}) & group.keys()
            arrays = {name: np.asarray(group[name], LAYOUT[name][0]) for name in stored}
            n = len(arrays["token_ids"])
            sizes = {"layer": len(self.layers), "query": n, "key": n, "key_class": len(self._file.attrs["key_classes"])}
            fit = all(_fit(array.shape, LAYOUT[name][1], sizes) for name, array in arrays.items())
            if not fit or not all(sizes.values()) or sizes["layer"] != len(set(self.layers.tolist())):
                raise DamagedFileError(self.path, f"prompt {prompt!r} has axes that do not fit each other")
            # `position_mass` is not among them, since that of the last key is undefined.
            if not all(_is_attention(arrays[name]) for name in stored & {"key_mass", "row_sum", "mean_key_mass"}):
                raise DamagedFileError(self.path, f"prompt {prompt!r} holds attention that is not between 0 and 1")
            parts = {"kept": _taken(Kept, arrays), "received": _taken(Received, arrays)}
            sink, keys = (arrays.setdefault(name) for name in ("sink_mass", "key_mass"))
            if kept := parts["kept"]:
                sink, keys = kept.mean_sink_mass.astype(np.float32), kept.mean_key_mass
                if (np.diff(kept.lengths) < 1).any() or kept.lengths[0] < 1 or kept.lengths[-1] != n:
                    raise DamagedFileError(self.path, f"prompt {prompt!r} has lengths that are not those of prefixes")
            if not np.array_equal(keys[..., 0], sink):
                raise DamagedFileError(self.path, f"sink_mass and key_mass of prompt {prompt!r} contradict each other")
            arrays["tokens"] = [_text(token) for token in arrays["tokens"].tolist()]
            text_tokens = int(group.attrs.get("text_tokens", n))
            return Capture(prompt, _text(group.attrs["set"]), self.layers, text_tokens=text_tokens, **parts, **arrays)

    def maps(self, prompt: str, layer_row: int) -> np.ndarray:
        """One layer's maps (head, query, key) float16, by row of the layer axis."""
        with reading(self.path):
            maps, n = self._file[prompt]["attention"], len(self._file[prompt]["token_ids"])
            if maps.shape != (*self._file[prompt]["output_norm"].shape, n, n) or not _is_attention(maps[layer_row]):
                raise DamagedFileError(self.path, f"the maps of prompt {prompt!r} are not attention to its tokens")
            return maps[layer_row]


@contextmanager
def open_capture(path: Path | str, expected: Expected | None = None) -> Iterator[CaptureFile]:
    """A capture open for reading; what the block raises passes through.

    Raises DamagedFileError when the file is damaged, no complete capture, or not the `expected` one.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DamagedFileError(path, "it is no regular file")
    with reading(path):
        file = h5py.File(path, "r")
    with file:
        capture = CaptureFile(path, file)
        if expected is not None:
            expected.check(capture)
        yield capture


def read_captures(paths: Iterable[Path | str], expected: Expected | None = None) -> Iterator[Capture]:
    """The captures of one model's files, one prompt at a time, in the order in which they were written.

    Raises DamagedFileError as `open_capture` does, and StudyError where two files are not of the same model, weights
    and settings, or hold the same prompt.
    """
    holders: dict[str, Path] = {}
    first: CaptureFile | None = None
    for path in paths:
        with open_capture(path, expected) as file:
            first = first or file
            if any(file.attributes.get(name) != first.attributes.get(name) for name in IDENTITY):
                raise misplaced(path, f"is not of the same model, weights and settings as {first.path}")
            for prompt in file.prompts:
                if prompt in holders:
                    raise misplaced(path, f"holds prompt {prompt!r}, as {holders[prompt]} does")
                holders[prompt] = file.path
                yield file.capture(prompt)


def read_provenance(path: Path | str, expected: Expected | None = None) -> dict[str, str]:
    """The attributes of a capture file as text."""
    with open_capture(path, expected) as file:
        return file.attributes


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever HDF5 and NumPy raise over a damaged file in the block, which only reads it, names the file."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:
        # With an error number it is the system that failed (no such file, a lock, a lost mount), else the content.
        if isinstance(error, OSError) and error.errno is not None:
            raise StudyError(
                f"{path}: cannot be read ({os.strerror(error.errno)}); mend that and run again."
            ) from error
        reason = " ".join(str(error).strip("'\"").split())
        raise DamagedFileError(path, f"it cannot be read as a capture ({reason})") from error


def _taken(part: type[Kept | Received], arrays: dict[str, np.ndarray]) -> Kept | Received | None:
    """A part of a capture out of its arrays, which keep the rest; None where it is not there."""
    names = [one.name for one in fields(part)]
    held = {name: arrays.pop(name) for name in names if name in arrays}
    return part(**held) if held else None


def misplaced(path: Path | str, why: str) -> StudyError:
    return StudyError(f"{path}: {why}; delete the one that does not belong there and run again.")


def _fit(shape: tuple[int, ...], axes: tuple[str, ...], sizes: dict[str, int]) -> bool:
    """Whether a dataset's axes are as long as those of the same name before it, which `sizes` gathers."""
    return len(shape) == len(axes) and all(sizes.setdefault(*axis) == axis[1] for axis in zip(axes, shape, strict=True))


def _is_attention(masses: np.ndarray) -> bool:
    return bool(((masses >= 0) & (masses <= _LARGEST_MASS)).all())


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
