"""Reading and writing the study's CSV tables: one float format, whole files or none, long ones part by part."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from sinkstudy.store.temporary import temporary_for

_ROWS_AT_ONCE = 1 << 14
# Only empty cells are undefined: a prompt may be called NA.
_READ = {"dtype": {"model": str, "set": str, "prompt": str}, "keep_default_na": False, "na_values": [""]}
_NUMBER = "{:.9g}".format
_POWERS = np.array([10.0**i for i in range(13)])


def write_table(table: pd.DataFrame | Iterable[pd.DataFrame], path: Path | str) -> None:
    """Write a table, or its parts as they come, with nine significant digits; undefined values are empty cells."""
    path = Path(path)
    temporary = temporary_for(path)
    parts = [table] if isinstance(table, pd.DataFrame) else table
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            names = None
            for part in parts:
                if names is None:
                    names = part.columns
                    stream.write(",".join(map(_quoted, names)) + "\n")
                cells = zip(*(_as_text(part[name]) for name in names), strict=True)
                stream.write("\n".join([*map(",".join, cells), ""]))
                del part, cells  # two parts are never held at once
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_text(column: pd.Series) -> list[str]:
    """The cells of a column. Each distinct value is put into words once."""
    places, values = pd.factorize(column)
    if values.dtype.kind == "f":
        words = _numbers(np.asarray(values, float))
    else:
        words = [_NUMBER(value) if isinstance(value, float) else _quoted(str(value)) for value in values.tolist()]
    return np.array([*words, ""], object)[places].tolist()  # an undefined value has place -1


def _numbers(values: np.ndarray) -> list[str]:
    """_NUMBER of each, in a fifth of its time: rounded, then written as short as tells one double from the next."""
    size = np.abs(values)
    fixed = (size >= 1e-4) & (size < 1e8)  # written without an exponent
    powers = _POWERS[8 - np.floor(np.log10(size, where=fixed, out=np.zeros_like(size))).astype(int)]
    scaled = np.where(fixed, values, 0) * powers
    whole = np.rint(scaled)
    fixed &= np.abs(np.abs(scaled - whole) - 0.5) > 1e-6  # else the product's own rounding may decide
    text = orjson.dumps(whole / powers, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    words = f"{text[1:-1]},".replace(".0,", ",").split(",")[: len(values)]
    for i in np.flatnonzero(~fixed):
        words[i] = _NUMBER(values[i])
    return words


def _quoted(word: str) -> str:
    """As the standard library's csv module quotes where it must."""
    return '"' + word.replace('"', '""') + '"' if any(c in word for c in ',"\r\n') else word


def read_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Several tables of the same columns as one; an empty frame where there are none."""
    frames = [pd.read_csv(path, **_READ) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


@dataclass(frozen=True)
class LongTable:
    """Tables with many rows per prompt, which are never held whole.

    Iterating reads them from the start, a bounded number of rows at a time: all rows of a prompt together, which is how
    they were written. `columns`: only these.
    """

    paths: Sequence[Path | str]
    columns: Sequence[str] | None = None

    def __iter__(self) -> Iterator[pd.DataFrame]:
        for path in self.paths:
            cut = pd.DataFrame()
            for rows in pd.read_csv(path, usecols=self.columns, chunksize=_ROWS_AT_ONCE, **_READ):
                rows = pd.concat([cut, rows], ignore_index=True) if len(cut) else rows
                last = rows["prompt"] == rows["prompt"].iloc[-1]
                if not last.all():
                    yield rows[~last]
                cut = rows[last]
            if len(cut):
                yield cut

    def only(self, chosen: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
        """The rows for which `chosen` is true, as one table with the columns of all."""
        parts = [rows[chosen(rows)] for rows in self]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=self.columns)
