"""Reading capture files: what is damaged, foreign or not the one expected is refused by name."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import DamagedFileError, StudyError
from sinkstudy.prompts import combined_digest

SCHEMA = 7
# Type and axes of each dataset of a prompt. `row_sum` is there only where rows sum to less than 1 (learned sinks),
# `attention` only up to maps_max_tokens, `position_mass` up to positions_max_tokens. Of the rest, what could not be
# measured is NaN, and so is the `position_mass` of the last key.
LAYOUT = {
    "token_ids": (np.int32, ("query",)),
    "tokens": (None, ("query",)),
    "sink_mass": (np.float32, ("layer", "head", "query")),
    "key_mass": (np.float32, ("layer", "head", "query", "key_class")),
    "output_norm": (np.float32, ("layer", "head")),
    "row_sum": (np.float32, ("layer", "head", "query")),
    "activation": (np.float32, ("layer",)),
    "activation_channel": (np.int32, ("layer", "channel")),
    "channel_value": (np.float32, ("layer", "channel")),
    "value_drain": (np.float32, ("layer", "head")),
    "position_mass": (np.float32, ("layer", "head", "key")),
    "attention": (np.float16, ("layer", "head", "query", "key")),
}
_NEEDED = ("token_ids", "sink_mass", "key_mass", "output_norm")
_MASSES = ("key_mass", "row_sum")  # `position_mass` is not among them, since that of the last key is undefined
_LARGEST_MASS = 1.1  # rows of half precision sum to 1 up to 0.05
_IDENTITY = ("model", "source", "revision", "quantization", "dtype", "bos")


@dataclass(frozen=True)
class Capture:
    """One prompt's capture without its maps, see `LAYOUT`. `layers` are true layer indices; `row_sum` None means 1.
    `text_tokens`: of the whole text, where it was cut to the model's context; None: as many as were captured.

    `activation`: the norm of the first token's residual entering a layer over the median of the others' norms;
    `activation_channel` and `channel_value`: its largest channels. `value_drain`: the same ratio for the values that a
    head reads. `position_mass`: the mean, over the queries after a key, of their attention to it.
    """

    prompt: str
    set: str
    layers: np.ndarray
    token_ids: np.ndarray
    sink_mass: np.ndarray
    key_mass: np.ndarray
    output_norm: np.ndarray
    row_sum: np.ndarray | None = None
    activation: np.ndarray | None = None
    activation_channel: np.ndarray | None = None
    channel_value: np.ndarray | None = None
    value_drain: np.ndarray | None = None
    position_mass: np.ndarray | None = None
    text_tokens: int | None = None

    @property
    def n_tokens(self) -> int:
        return self.sink_mass.shape[-1]

    @property
    def nbytes(self) -> int:
        large = (self.sink_mass, self.key_mass, self.row_sum, self.position_mass)
        return sum(part.nbytes for part in large if part is not None)


NamedCapture = tuple[Capture, list[str]]  # with its tokens, each decoded by itself


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

    `attributes`: those of the file, as text. `layers`: true layer indices. `prompts`: the digest of each prompt by its
    id, in the order written.
    """

    def __init__(self, path: Path, file: h5py.File):
        self.path, self._file = path, file
        with _reading(path):
            if not file.attrs.get("complete", False) or file.attrs.get("schema") != SCHEMA:
                raise DamagedFileError(path, f"it is not a complete capture of schema {SCHEMA}")
            self.attributes = {name: _text(value) for name, value in file.attrs.items()}
            self.layers = np.asarray(file.attrs["layers"])
            self.prompts = {name: _text(file[name].attrs["digest"]) for name in file}
            if len(self.prompts) != file.attrs["prompts"]:
                raise DamagedFileError(path, f"it holds {len(self.prompts)} of {file.attrs['prompts']} prompts")

    def shapes(self, prompt: str) -> dict[str, tuple[int, ...]]:
        """The shape of each array that is stored of a prompt, see `LAYOUT`."""
        with _reading(self.path):
            return {name: self._file[prompt][name].shape for name in self._file[prompt]}

    def capture(self, prompt: str) -> Capture:
        """What is stored of one prompt, without its maps."""
        with _reading(self.path):
            group = self._file[prompt]
            optional = [name for name in group if name in LAYOUT and name not in (*_NEEDED, "tokens", "attention")]
            arrays = {name: np.asarray(group[name], LAYOUT[name][0]) for name in (*_NEEDED, *optional)}
            n = len(arrays["token_ids"])
            sizes = {"layer": len(self.layers), "query": n, "key": n, "key_class": len(self._file.attrs["key_classes"])}
            fit = all(_fit(array.shape, LAYOUT[name][1], sizes) for name, array in arrays.items())
            if not fit or not all(sizes.values()) or sizes["layer"] != len(set(self.layers.tolist())):
                raise DamagedFileError(self.path, f"prompt {prompt!r} has axes that do not fit each other")
            if not all(map(_is_attention, (arrays[name] for name in _MASSES if name in arrays))):
                raise DamagedFileError(self.path, f"prompt {prompt!r} holds attention that is not between 0 and 1")
            if not np.array_equal(arrays["key_mass"][..., 0], arrays["sink_mass"]):
                raise DamagedFileError(self.path, f"sink_mass and key_mass of prompt {prompt!r} contradict each other")
            whole = group.attrs.get("text_tokens")
            about = {"set": _text(group.attrs["set"]), "text_tokens": None if whole is None else int(whole)}
            return Capture(prompt, layers=self.layers, **about, **arrays)

    def tokens(self, prompt: str) -> list[str]:
        """The tokens of one prompt, each decoded by itself."""
        with _reading(self.path):
            tokens = self._file[prompt]["tokens"][()].tolist()
            if len(tokens) != len(self._file[prompt]["token_ids"]):
                raise DamagedFileError(self.path, f"prompt {prompt!r} has more or fewer tokens than token ids")
            return [_text(token) for token in tokens]

    def maps(self, prompt: str, layer_row: int) -> np.ndarray:
        """One layer's maps (head, query, key) float16, by row of the layer axis."""
        with _reading(self.path):
            maps, masses = self._file[prompt]["attention"], self._file[prompt]["sink_mass"]
            if maps.shape != (*masses.shape, masses.shape[-1]) or not _is_attention(maps[layer_row]):
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
    with _reading(path):
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
    for capture, _ in read_named_captures(paths, expected):
        yield capture


def read_named_captures(paths: Iterable[Path | str], expected: Expected | None = None) -> Iterator[NamedCapture]:
    """As `read_captures`, each with its tokens."""
    holders: dict[str, Path] = {}
    first: CaptureFile | None = None
    for path in paths:
        with open_capture(path, expected) as file:
            first = first or file
            if any(file.attributes.get(name) != first.attributes.get(name) for name in _IDENTITY):
                raise StudyError(
                    f"{path}: is not of the same model, weights and settings as {first.path}; delete the one that does "
                    "not belong there and run again."
                )
            for prompt in file.prompts:
                if prompt in holders:
                    raise StudyError(
                        f"{path}: holds prompt {prompt!r}, as {holders[prompt]} does; delete the one that does not "
                        "belong there and run again."
                    )
                holders[prompt] = file.path
                yield file.capture(prompt), file.tokens(prompt)


def read_provenance(path: Path | str, expected: Expected | None = None) -> dict[str, str]:
    """The attributes of a capture file as text."""
    with open_capture(path, expected) as file:
        return file.attributes


@contextmanager
def _reading(path: Path) -> Iterator[None]:
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


def _fit(shape: tuple[int, ...], axes: tuple[str, ...], sizes: dict[str, int]) -> bool:
    """Whether a dataset's axes are as long as those of the same name before it, which `sizes` gathers."""
    return len(shape) == len(axes) and all(sizes.setdefault(*axis) == axis[1] for axis in zip(axes, shape, strict=True))


def _is_attention(masses: np.ndarray) -> bool:
    return bool(((masses >= 0) & (masses <= _LARGEST_MASS)).all())


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
