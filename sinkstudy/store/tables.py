"""The study's tables: CSV with nine significant digits, and long ones as Parquet, part by part."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sinkstudy.errors import reading
from sinkstudy.store.atomic import atomic_write

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
    where `csv` names a file, the same rows there. A table without rows keeps its columns."""
    folder = Path(folder)
    for left in folder.glob("*.parquet"):
        left.unlink()
    written = 0
    for part in parts:
        # Categories differ from part to part, which readers of a whole folder refuse.
        names = part.select_dtypes("category").columns
        with atomic_write(folder / f"{written:05d}.parquet") as temporary:
            part.astype(dict.fromkeys(names, str)).to_parquet(temporary, index=False)
        written += len(part) > 0  # The next part takes the place of an empty one.
    if csv is not None:
        write_table(LongTable([folder]), csv)


def read_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Several tables of the same columns as one; an empty frame where there are none. DamagedFileError names the file
    that is no table."""
    frames = []
    for path in map(Path, paths):
        with reading(path):
            frames.append(pd.read_csv(path, **_READ))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


@dataclass(frozen=True)
class LongTable:
    """Tables that `write_long_table` wrote, which are never held whole. Iterating reads them from the start, part by
    part, with all rows of a prompt together; DamagedFileError names the folder that holds something else."""

    folders: Sequence[Path | str]

    def __iter__(self) -> Iterator[pd.DataFrame]:
        for folder in map(Path, self.folders):
            for part in sorted(folder.glob("*.parquet")):
                with reading(folder):
                    rows = pd.read_parquet(part)
                yield rows

    def only(self, chosen: Callable[[pd.DataFrame], pd.Series]) -> pd.DataFrame:
        """The rows for which `chosen` is true, as one table."""
        return pd.concat([rows[chosen(rows)] for rows in self], ignore_index=True)
