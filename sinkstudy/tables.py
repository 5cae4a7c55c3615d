"""Reading and writing the study's CSV tables: one float format, whole files or none."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd


def write_table(table: pd.DataFrame | Iterable[pd.DataFrame], path: Path | str) -> None:
    """Write a table, or its parts as they come, with nine significant digits; undefined values are empty cells."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    parts = [table] if isinstance(table, pd.DataFrame) else table
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            for i, part in enumerate(parts):
                rows = csv.writer(stream, lineterminator="\n")
                if i == 0:
                    rows.writerow(part.columns)
                rows.writerows(zip(*(_as_text(part[name]) for name in part.columns), strict=True))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_text(column: pd.Series) -> np.ndarray:
    """The cells of a column. Each distinct value is put into words once, which takes a fifth of pandas' own time."""
    places, values = pd.factorize(column)
    words = [f"{value:.9g}" if isinstance(value, float) else str(value) for value in values.tolist()]
    return np.array([*words, ""], object)[places]  # an undefined value has place -1


def read_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Several tables of the same columns as one; an empty frame where there are none."""
    # Only empty cells are undefined: a prompt may be called NA.
    empty = {"keep_default_na": False, "na_values": [""]}
    frames = [pd.read_csv(path, dtype={"model": str, "set": str, "prompt": str}, **empty) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
