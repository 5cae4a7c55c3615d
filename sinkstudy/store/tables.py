"""Reading and writing the study's tables: one float format, whole files or none, long ones part by part."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sinkstudy.store.atomic import atomic_write

_ROWS_AT_ONCE = 1 << 14
_WRITE = {"index": False, "float_format": "%.9g", "lineterminator": "\n"}
# Only an empty cell is undefined, because a prompt may be called NA.
_READ = {"dtype": {"model": str, "set": str, "prompt": str}, "keep_default_na": False, "na_values": [""]}


def write_table(table: pd.DataFrame | Iterable[pd.DataFrame], path: Path | str) -> None:
    """Write a table, or its parts as they come, with nine significant digits; undefined values are empty cells."""
    parts = [table] if isinstance(table, pd.DataFrame) else table
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        for part in parts:
            part.infer_objects().to_csv(stream, header=stream.tell() == 0, **_WRITE)
            del part  # Two parts are never held at once.


def write_long_table(parts: Iterable[pd.DataFrame], folder: Path | str, csv: Path | str | None = None) -> None:
    """Write a table with many rows per prompt as it comes: a Parquet file per part in `folder`, with all digits; and,
    where `csv` names a file, the same rows there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.parquet"):
        left.unlink()

    def stored() -> Iterator[pd.DataFrame]:
        written = 0
        for part in parts:
            if len(part):
                with atomic_write(folder / f"{written:05d}.parquet") as temporary:
                    # Categories differ from part to part, which readers of a whole folder refuse.
                    names = part.select_dtypes("category").columns
                    part.astype(dict.fromkeys(names, str)).to_parquet(temporary, index=False)
                written += 1
            yield part

    if csv is not None:
        write_table(stored(), csv)
    else:
        for _ in stored():
            pass


def read_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Several tables of the same columns as one; an empty frame where there are none."""
    frames = [pd.read_csv(path, **_READ) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


@dataclass(frozen=True)
class LongTable:
    """Tables with many rows per prompt, which are never held whole: CSV files, or folders of Parquet files.

    Iterating reads them from the start, a bounded number of rows at a time: all rows of a prompt together, which is how
    they were written. `columns`: only these.
    """

    paths: Sequence[Path | str]
    columns: Sequence[str] | None = None

    def __iter__(self) -> Iterator[pd.DataFrame]:
        for path in map(Path, self.paths):
            if path.is_dir():
                yield from (pd.read_parquet(part, columns=self.columns) for part in sorted(path.glob("*.parquet")))
                continue
            cut = pd.DataFrame()
            for rows in pd.read_csv(path, usecols=self.columns, chunksize=_ROWS_AT_ONCE, **_READ):
                if rows.empty:
                    continue
                rows = pd.concat([cut, rows], ignore_index=True) if len(cut) else rows
                last = rows["prompt"] == rows["prompt"].iloc[-1]
                if not last.all():
                    yield rows[~last]
                cut = rows[last]
            if len(cut):
                yield cut

    @property
    def in_folders(self) -> bool:
        """Whether it is read from Parquet files."""
        return all(Path(path).is_dir() for path in self.paths)

    def only(self, chosen: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
        """The rows for which `chosen` is true, as one table with the columns of all."""
        parts = [rows[chosen(rows)] for rows in self]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=self.columns)
