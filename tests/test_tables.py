import numpy as np
import pandas as pd
import pytest

from sinkstudy.tables import LongTable, read_tables, write_table


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
    monkeypatch.setattr("sinkstudy.tables._ROWS_AT_ONCE", at_once)
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
