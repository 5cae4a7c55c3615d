import csv
import io
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinkstudy.prompts import Prompt, digest, read_prompts, shards, spread_over_lengths
from sinkstudy.store.tables import read_tables, write_table

HEADER = "prompt\tset\ttext\n"


@pytest.fixture
def table(tmp_path: Path):
    """Writes a prompt table and gives its path."""

    def make(content: str | bytes) -> Path:
        path = tmp_path / "prompts.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ("", ["prompt"]),
        ("prompt\tset\na\tshort\n", ["'text'"]),
        ("id\tset\ttext\na\tshort\thello\n", ["'prompt'"]),
        ("prompt,set,text\na,short,hello\n", ["'prompt'"]),
        (HEADER, ["no prompts"]),
        (HEADER + "\n\n", ["no prompts"]),
        (HEADER + "a\tshort\thello\na\tlong\tother\n", ["'a'", "twice"]),
        (HEADER + "a\tshort\t\n", ["'a'", "empty"]),
        (HEADER + "ok\tshort\tfine\nb\tshort\t \u00a0\u2003 \n", ["'b'", "empty"]),
        (HEADER + 'a\tshort\t"\t\n \n"\n', ["'a'", "empty"]),
        (HEADER + "a\tshort\thel\0lo\n", ["'a'", "NUL"]),
        (HEADER + "a\tshort\thello\tmore\n", ["line 2"]),
        (HEADER + "ok\tshort\tfine\na\tshort\n", ["line 3"]),
        (HEADER + "a\n", ["line 2"]),
        (HEADER + "ok\tshort\tfine\n\tshort\thello\n", ["line 3", "prompt", "''"]),
        (HEADER + "a b\tshort\thello\n", ["line 2", "prompt", "'a b'"]),
        (HEADER + "../a\tshort\thello\n", ["line 2", "prompt", "'../a'"]),
        (HEADER + "a/b\tshort\thello\n", ["line 2", "prompt", "'a/b'"]),
        (HEADER + "-a\tshort\thello\n", ["line 2", "prompt", "'-a'"]),
        (HEADER + ".\tshort\thello\n", ["line 2", "prompt", "'.'"]),
        (HEADER + "é\tshort\thello\n", ["line 2", "prompt", "'é'"]),
        (HEADER + '"a\n"\tshort\thello\n', ["prompt", "'a\\n'"]),
        (HEADER + "a\t{model}\thello\n", ["line 2", "set", "'{model}'"]),
        (HEADER + "a\t\thello\n", ["line 2", "set", "''"]),
        (HEADER + "all\tshort\thello\n", ["line 2", "prompt", "'all'"]),
        (HEADER + f"a\t{'s' * 65}\thello\n", ["line 2", "set", "64"]),
        (HEADER + "a\tall\thello\n", ["line 2", "set", "'all'"]),
        (HEADER.encode() + b"ok\tshort\tfine\na\tshort\tcaf\xe9\n", ["line 3", "UTF-8"]),
        ((HEADER + "a\tshort\thello\n").encode("utf-16"), ["line 1", "UTF-8"]),
    ],
)
def test_a_bad_table_is_refused_by_file_and_row(table, refuses, content, mentions):
    path = table(content)
    with refuses(str(path), *mentions):
        read_prompts(path)


@pytest.mark.parametrize(
    "rows",
    ['a\tshort\t"never closed\nb\tshort\thello\n', 'a\tshort\t"Hello," she said.\nb\tshort\thello\n'],
    ids=["unclosed", "half of the text"],
)
def test_a_quote_that_does_not_fit_is_refused_and_never_swallows_rows_or_characters(table, refuses, rows):
    path = table(HEADER + rows)
    with refuses(str(path)):
        read_prompts(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('a\tshort\t"tab\there, and\ntwo lines"\n', "tab\there, and\ntwo lines"),
        ('a\tshort\t"with ""quotes"""\n', 'with "quotes"'),
        ('a\tshort\tin "the middle" only\n', 'in "the middle" only'),
        ("a\tshort\t  spaces kept  \n", "  spaces kept  "),
        ("a\tshort\t🙂👩‍👩‍👧\n", "🙂👩‍👩‍👧"),
        ("a\tshort\t\u05e9\u05dc\u05d5\u05dd \u202bx\u202c\n", "\u05e9\u05dc\u05d5\u05dd \u202bx\u202c"),
        ("a\tshort\tno final line break", "no final line break"),
        ("a\tshort\thello\r\n", "hello"),
        ('a\tshort\t"one\r\ntwo"\r\n', "one\r\ntwo"),
        ("a\tshort\t" + "x" * 300_000 + "\n", "x" * 300_000),
    ],
    ids=["quoted", "quotes", "inner quotes", "spaces", "emoji", "rtl", "no newline", "crlf", "quoted crlf", "huge"],
)
def test_a_text_comes_back_exactly(table, content, expected):
    assert read_prompts(table(HEADER + content)) == [Prompt("a", "short", expected)]


def test_a_byte_order_mark_and_windows_line_ends_are_understood(table):
    content = "\ufeff" + HEADER + "a\tshort\thello\n\nb\tlong\tworld\n"
    prompts = read_prompts(table(content.replace("\n", "\r\n")))
    assert prompts == [Prompt("a", "short", "hello"), Prompt("b", "long", "world")]


def test_columns_may_come_in_any_order_beside_others(table):
    content = "note\ttext\tset\tprompt\nmine\thello\tshort\ta\n"
    assert read_prompts(table(content)) == [Prompt("a", "short", "hello")]


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True).filter(lambda name: name != "all")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
tables = st.lists(st.builds(Prompt, names, names, texts), min_size=1, max_size=12, unique_by=lambda prompt: prompt.id)


@given(tables)
def test_any_table_that_a_spreadsheet_writes_is_read_back(tmp_path_factory, prompts):
    out = io.StringIO(newline="")
    writer = csv.writer(out, dialect="excel-tab")
    writer.writerow(["prompt", "set", "text"])
    writer.writerows([prompt.id, prompt.set, prompt.text] for prompt in prompts)
    path = tmp_path_factory.mktemp("tables") / "prompts.tsv"
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    assert read_prompts(path) == prompts


@pytest.mark.parametrize("name", ["NA", "nan", "None", "null", "1e5", "007", "True"])
def test_any_accepted_name_survives_the_result_tables(table, tmp_path, name):
    (prompt,) = read_prompts(table(HEADER + f"{name}\t{name}\thello\n"))
    write_table(pd.DataFrame({"prompt": [prompt.id], "set": [prompt.set]}), tmp_path / "table.csv")
    read = read_tables([tmp_path / "table.csv"])
    assert read.to_dict("list") == {"prompt": [name], "set": [name]}


def estimated(prompts: list[Prompt]) -> int:
    return sum(1 + len(prompt.text.encode()) // 4 for prompt in prompts)


@given(tables, st.integers(1, 60))
def test_shards_hold_every_prompt_once_in_order_and_are_as_full_as_they_may_be(prompts, tokens):
    parts = list(shards(prompts, tokens).values())
    assert [prompt for part in parts for prompt in part] == prompts
    assert all(len(part) == 1 or estimated(part) <= tokens for part in parts)
    assert all(estimated([*part, following[0]]) > tokens for part, following in pairwise(parts))


def test_shards_keep_table_order_beyond_ten_of_them():
    prompts = [Prompt(f"p{i}", "s", "x") for i in range(25)]
    assert list(shards(prompts, 2)) == [f"{i:05d}" for i in range(13)]


def digests(prompts: list[Prompt], tokens: int) -> dict[str, str]:
    return {name: digest(part) for name, part in shards(prompts, tokens).items()}


@given(tables, tables, st.integers(1, 60))
def test_appending_prompts_leaves_the_digests_of_all_shards_but_the_last_as_they_were(prompts, more, tokens):
    before, after = digests(prompts, tokens), digests(prompts + more, tokens)
    *full, last = before
    assert {name: before[name] for name in full} == {name: after[name] for name in full}
    fits = estimated([*shards(prompts, tokens)[last], more[0]]) <= tokens
    assert (before[last] != after[last]) == fits


@given(tables, st.integers(1, 60), st.data())
def test_editing_one_prompt_changes_only_the_digest_of_its_shard(prompts, tokens, data):
    i = data.draw(st.integers(0, len(prompts) - 1))
    old = prompts[i]
    edited = data.draw(
        st.sampled_from(
            [Prompt(old.id + "x", old.set, old.text), Prompt(old.id, old.set + "x", old.text)]
            + [Prompt(old.id, old.set, text + old.text[1:]) for text in "xyz" if text != old.text[0] < "\x80"]
        )
    )
    before = digests(prompts, tokens)
    after = digests([*prompts[:i], edited, *prompts[i + 1 :]], tokens)
    (own,) = (name for name, part in shards(prompts, tokens).items() if old in part)
    assert [name for name in before if before[name] != after[name]] == [own]


def test_a_digest_tells_where_one_field_ends_and_the_next_begins():
    assert digest([Prompt("ab", "c", "d")]) != digest([Prompt("a", "bc", "d")])
    assert digest([Prompt("a", "s", "x"), Prompt("b", "s", "y")]) != digest(
        [Prompt("b", "s", "y"), Prompt("a", "s", "x")]
    )


def test_a_sample_of_prompts_spreads_over_their_lengths():
    token_ids = {f"p{n}": [0] * n for n in (9, 3, 40, 5, 21)}
    assert spread_over_lengths(token_ids, 3) == ["p3", "p9", "p40"]
    assert spread_over_lengths(token_ids, 1) == ["p3"]
    assert spread_over_lengths(token_ids, 50) == ["p3", "p5", "p9", "p21", "p40"]
