"""Result tables: written as the standard library's csv module would, read whole or in parts."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkstudy.store.tables import LongTable, read_tables, write_long_table, write_table

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# Without -0.0, which is written as the 0 it equals when both occur.
numbers = (st.floats() | st.sampled_from([0.1 + 0.2, 1e-7, 1e22])).map(lambda number: number + 0.0)
COLUMNS = {"a, b": object, "seen": object, "n": int, 'a "score"': float}
rows = st.lists(st.tuples(texts, st.none() | st.booleans(), st.integers(-5, 5), numbers), max_size=8)


def by_csv(rows: list[tuple]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for text, seen, n, number in rows:
        writer.writerow([text, seen, n, "" if np.isnan(number) else f"{number:.9g}"])
    return out.getvalue()


@given(rows)
def test_a_table_is_the_text_that_the_csv_module_writes(tmp_path_factory, rows):
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    write_table([table.iloc[:3], table.iloc[3:]], path)
    assert path.read_bytes().decode() == by_csv(rows)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.random(50_000),
        lambda rng: 10 ** rng.uniform(-6, 12, 50_000) * rng.choice([-1, 1], 50_000),
        lambda rng: np.round(rng.random(50_000), 9) + 5e-10,  # next to the middle between two numbers of nine digits
        lambda rng: rng.integers(0, 10**10, 50_000) / 1e10,
        lambda rng: np.array([0, 1e-4, 9.9999999999e-5, 0.1, 99999999.95, 999999999.95, 1e9, 5e-324, 1e308, np.inf]),
    ],
    ids=["shares", "any size", "ties", "ten digits", "edges"],
)
def test_many_numbers_at_once_are_each_written_with_nine_significant_digits(tmp_path, draw):
    numbers = draw(np.random.default_rng(0))
    write_table(pd.DataFrame({"number": numbers}), tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines()[1:] == [f"{number:.9g}" for number in numbers]


COLUMNS_OF_HEADS = ["model", "prompt", "head", "score"]


def parts_of(name: str) -> list[pd.DataFrame]:
    """Nine prompts with one to six rows each, of which some are in parts of their own, and empty parts."""
    rng = np.random.default_rng(0)
    rows = [[(name, f"{name}{i}", k, rng.random()) for k in range(rng.integers(1, 7))] for i in range(9)]
    parts = [pd.DataFrame(of, columns=COLUMNS_OF_HEADS) for of in rows]
    empty = pd.DataFrame(columns=COLUMNS_OF_HEADS)
    return [empty, parts[0], empty, pd.concat(parts[1:5]), *parts[5:]]


@pytest.fixture
def folders(tmp_path):
    """Two long tables, in the place of earlier ones with more parts, and as CSV."""
    for name in ("a", "b"):
        write_long_table(parts_of(name) * 2, tmp_path / name)
        write_long_table(parts_of(name), tmp_path / name, tmp_path / f"{name}.csv")
    return [tmp_path / "a", tmp_path / "b"]


def test_a_long_table_comes_in_the_parts_that_were_written_with_all_digits_and_without_empty_ones(folders):
    table = LongTable(folders)
    written = [part for name in ("a", "b") for part in parts_of(name) if len(part)]
    for _ in range(2):
        for found, part in zip(table, written, strict=True):
            pd.testing.assert_frame_equal(found, part.reset_index(drop=True), check_dtype=False, check_exact=True)


def test_a_long_table_as_csv_has_the_same_rows(folders):
    for folder in folders:
        rows = read_tables([folder.with_suffix(".csv")])
        pd.testing.assert_frame_equal(rows, pd.concat(LongTable([folder]), ignore_index=True), rtol=1e-8)
        pd.testing.assert_frame_equal(rows, pd.read_parquet(folder), rtol=1e-8)


def test_a_long_table_gives_the_rows_that_are_asked_for(folders):
    table = LongTable(folders)
    rows = table.only(lambda part: part["head"] == 3)
    pd.testing.assert_frame_equal(rows, pd.concat(table).query("head == 3").reset_index(drop=True))
    assert table.only(lambda part: part["head"] > 9).columns.tolist() == COLUMNS_OF_HEADS


def test_a_damaged_table_is_refused_by_name(folders, refuses):
    csv, part = folders[0].with_suffix(".csv"), max(folders[0].iterdir())
    csv.write_bytes(b"\xff\x00")
    part.write_bytes(part.read_bytes()[:-9])
    with refuses(str(csv), "delete it and run again"):
        read_tables([csv])
    with refuses(part.name, f"(rm -r {folders[0]} && snakemake --cores 4)"):
        list(LongTable(folders))


def test_a_long_table_without_rows_keeps_its_columns(tmp_path):
    write_long_table([pd.DataFrame(columns=COLUMNS_OF_HEADS)], tmp_path / "none", tmp_path / "none.csv")
    assert LongTable([tmp_path / "none"]).only(lambda part: part["head"] == 3).columns.tolist() == COLUMNS_OF_HEADS
    assert (tmp_path / "none.csv").read_text() == ",".join(COLUMNS_OF_HEADS) + "\n"
