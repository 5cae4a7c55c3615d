"""Files of what statistics need of captures: a few arrays per prompt, in the order of the study, some prompts per file.

A dataset has a row per prompt, or, if its name is in the attribute `by_token`, a row per token, prompt after prompt.
Which datasets there are, `sinkstudy.stats.reduction` decides.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.errors import MisplacedFileError, reading
from sinkstudy.store.atomic import atomic_write
from sinkstudy.store.hdf5 import describe, fixed_length, new_file

_CHUNK_BYTES = 1 << 16
# So many prompts are read at once, or fewer where their number times the longest exceeds so many tokens. Blocks depend
# on the prompts alone, not on their files, so that sums over them are the same to the last bit.
_PROMPTS_AT_ONCE, _TOKENS_AT_ONCE = 1 << 10, 1 << 16
_ROWS_AT_ONCE = 1 << 15  # Parts of a table have about so many rows.

Rows = Mapping[str, np.ndarray | list[str]]


def write_reduced(
    path: Path, batches: Iterable[Rows], by_token: Sequence[str], attributes: Mapping[str, object]
) -> None:
    """Write the file `path` from the rows of a few prompts at a time; text is gathered and written at the end."""
    with atomic_write(path) as temporary, new_file(temporary) as (file, _):
        fill(file, batches, by_token, attributes)


def fill(file: h5py.File, batches: Iterable[Rows], by_token: Sequence[str], attributes: Mapping[str, object]) -> None:
    """Put into an open file what `write_reduced` writes."""
    words: dict[str, list[str]] = {}
    for batch in batches:
        for name, rows in batch.items():
            if isinstance(rows, list):
                words.setdefault(name, []).extend(rows)
            elif name in file:
                if file[name].dtype != rows.dtype:
                    raise RuntimeError(f"{name} is {rows.dtype}, where rows before are {file[name].dtype}")
                file[name].resize(len(file[name]) + len(rows), axis=0)
                file[name][-len(rows) :] = rows
            else:
                together = max(1, min(len(rows), _CHUNK_BYTES // max(1, rows[0].nbytes)))
                shape = {"chunks": (together, *rows.shape[1:]), "maxshape": (None, *rows.shape[1:])}
                file.create_dataset(name, data=rows, fletcher32=True, **shape)
    for name, rows in words.items():
        file.create_dataset(name, data=fixed_length(rows), chunks=True, fletcher32=True, compression=2)
    describe(file, {**attributes, "by_token": tuple(by_token)})


class Reduced:
    """What is stored of all prompts of one model, read from its files when it is asked for.

    `prompts`, `sets`: ids and sets, (prompt,) text; `n_tokens` (prompt,). `attributes`: those of the files.
    Raises DamagedFileError where a file cannot be read, StudyError where two files do not belong together.
    """

    def __init__(self, sources: Sequence[Path | str | h5py.File]):
        self._sources = sources
        self.attributes: dict[str, object] = {}
        ids, sets, tokens = [], [], []
        for source in sources:
            with _opened(source) as file:
                found = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
                if found != (self.attributes or found):
                    raise MisplacedFileError(source, f"was not made as {sources[0]} was")
                self.attributes = found
                n = file["n_tokens"][:] if "n_tokens" in file else np.zeros(0, int)
                tokens.append(n.astype(int))
                ids += file["prompt"].asstr()[:].tolist() if len(n) else []
                sets += file["set"].asstr()[:].tolist() if len(n) else []
        self.prompts, self.sets = np.array(ids, object), np.array(sets, object)
        self.n_tokens = np.concatenate(tokens)
        self._starts = np.cumsum([0, *map(len, tokens)])
        self._offsets = [np.concatenate([[0], np.cumsum(n)]) for n in tokens]  # of each file, of its rows by token
        self._by_token = {name.decode() for name in self.attributes.get("by_token", ())}

    @property
    def thresholds(self) -> list[float]:
        return self.attributes["thresholds"]

    @cached_property
    def layers(self) -> np.ndarray:
        """True indices of the layers."""
        return self.rows("layers", np.array([0]))[0]

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Layers and heads."""
        return self.rows("output_norm", np.array([0])).shape[1:]

    def members(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each set in the order of the study, with the positions of its prompts."""
        for name in dict.fromkeys(self.sets.tolist()):
            yield name, np.flatnonzero(self.sets == name)

    def reaching(self, n: int | None) -> np.ndarray:
        """Positions of the prompts of at least `n` tokens; of all for None."""
        return np.flatnonzero(self.n_tokens >= (n or 0))

    def blocks(self, positions: np.ndarray, rows: int = 1) -> Iterator[np.ndarray]:
        """Positions of prompts in their order, a bounded number of prompts and tokens at a time, and of rows of a table
        that has `rows` of each prompt."""
        start, longest, most = 0, 0, max(1, min(_PROMPTS_AT_ONCE, _ROWS_AT_ONCE // rows))
        for at, n in enumerate(self.n_tokens[positions].tolist()):
            longest = max(longest, n)
            if at > start and (at - start == most or (at + 1 - start) * longest > _TOKENS_AT_ONCE):
                yield positions[start:at]
                start, longest = at, n
        if start < len(positions):
            yield positions[start:]

    def is_sink(self, positions: np.ndarray, n: int | None) -> np.ndarray:
        """Decisions at `n` tokens, or at whole prompts, (prompt, threshold, layer, head) bool; see `rows`."""
        bits = self.rows(f"sinks/{n or 'whole'}", positions)
        shape = (len(self.thresholds), *self.shape)
        return np.unpackbits(bits, axis=1, count=np.prod(shape)).reshape(-1, *shape).astype(bool)

    def of_each(self, name: str, positions: np.ndarray) -> Sequence[np.ndarray]:
        """What is stored of each prompt; see `rows`."""
        rows = self.rows(name, positions)
        return np.split(rows, np.cumsum(self.n_tokens[positions])[:-1]) if name in self._by_token else rows

    def rows(self, name: str, positions: np.ndarray) -> np.ndarray:
        """The rows of a dataset of the prompts at `positions`, ascending and at least one."""
        files = np.searchsorted(self._starts, positions, side="right") - 1
        parts = []
        for file in np.unique(files).tolist():
            own = positions[files == file] - self._starts[file]
            first, last, places = own[0], own[-1] + 1, own - own[0]
            if name in self._by_token:
                offsets = self._offsets[file]
                chosen = np.isin(np.arange(first, last), own)
                places = np.repeat(chosen, np.diff(offsets[first : last + 1]))
                first, last = offsets[first], offsets[last]
            with _opened(self._sources[file]) as stored:
                parts.append(stored[name][first:last][places])
        return np.concatenate(parts)


@contextmanager
def _opened(source: Path | str | h5py.File) -> Iterator[h5py.File]:
    if isinstance(source, h5py.File):
        yield source
    else:
        with reading(Path(source)), h5py.File(source, "r") as file:
            yield file
