"""Result tables: written as the standard library's csv module would, read whole or in parts."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkstudy.store.tables import LongTable, read_tables, write_table

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


@pytest.fixture
def files(tmp_path):
    """Two tables of prompts with one to six rows each."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        rows = [(name, f"{name}{i}", k, rng.random()) for i in range(9) for k in range(rng.integers(1, 7))]
        write_table(pd.DataFrame(rows, columns=["model", "prompt", "head", "score"]), tmp_path / f"{name}.csv")
    return [tmp_path / "a.csv", tmp_path / "b.csv"]


@pytest.mark.parametrize("at_once", [1, 2, 5, 6, 7, 1000])
def test_a_long_table_comes_in_parts_that_cut_no_prompt_and_are_the_whole_table(files, monkeypatch, at_once):
    monkeypatch.setattr("sinkstudy.store.tables._ROWS_AT_ONCE", at_once)
    table = LongTable(files)
    for _ in range(2):
        parts = list(table)
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), read_tables(files))
        prompts = [set(part["prompt"]) for part in parts]
        assert sum(map(len, prompts)) == len(set.union(*prompts)) == 18
        assert max(map(len, parts)) < at_once + 6


def test_a_long_table_gives_the_rows_that_are_asked_for(files):
    rows = LongTable(files, columns=["prompt", "head"]).only(lambda part: part["head"] == 3)
    expected = read_tables(files).query("head == 3")[["prompt", "head"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)
    assert LongTable(files).only(lambda part: part["head"] > 9).columns.tolist() == ["model", "prompt", "head", "score"]
