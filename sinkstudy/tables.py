"""Reading and writing the study's CSV tables: one float format, whole files or none."""

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd


def write_table(table: pd.DataFrame | Iterable[pd.DataFrame], path: Path | str) -> None:
    """Write a table, or its parts as they come, with nine significant digits; undefined values are empty cells."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    parts = [table] if isinstance(table, pd.DataFrame) else table
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            for i, part in enumerate(parts):
                part.to_csv(stream, index=False, float_format="%.9g", header=i == 0, lineterminator="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Several tables of the same columns as one; an empty frame where there are none."""
    # Only empty cells are undefined: a prompt may be called NA.
    empty = {"keep_default_na": False, "na_values": [""]}
    frames = [pd.read_csv(path, dtype={"model": str, "set": str, "prompt": str}, **empty) for path in paths]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
