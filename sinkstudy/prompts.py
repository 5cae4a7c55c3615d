"""The prompt table: reading it, and saying what is wrong with it."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from sinkstudy.errors import StudyError

COLUMNS = ("prompt", "set", "text")
RESERVED = "all"
LONGEST_SET = 64  # characters: a set's name becomes part of file names
BYTES_PER_TOKEN = 4  # of UTF-8, about: English text under the tokenizers of today
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Prompt:
    """One row of the table: a unique id, the set it belongs to, and its text."""

    id: str
    set: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read a tab-separated table with the columns prompt, set, text (quoted as spreadsheets do).

    Raises StudyError naming the row when a column is missing, an id is repeated or unusable as a name, or a
    text is empty, holds a NUL byte or is not UTF-8.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise StudyError(f"{path}: line {line} is not valid UTF-8; save the file as UTF-8.") from None
    csv.field_size_limit(max(len(content), 1))
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter="\t", restkey="extra", strict=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise StudyError(f"{path}: the column {missing[0]!r} is missing; the columns are prompt, set and text.")
    prompts: dict[str, Prompt] = {}
    for row in _rows(path, reader):
        prompt = _checked(path, f"line {reader.line_num}", row)
        if prompt.id in prompts:
            raise StudyError(f"{path}: the prompt id {prompt.id!r} appears twice; ids must be unique.")
        prompts[prompt.id] = prompt
    if not prompts:
        raise StudyError(f"{path}: there are no prompts; add at least one row.")
    return list(prompts.values())


def spread_over_lengths(token_ids: Mapping[str, Sequence[int]], count: int) -> list[str]:
    """The ids of `count` prompts, spread evenly over their lengths, the shortest and longest among them."""
    ordered = sorted(token_ids, key=lambda prompt: (len(token_ids[prompt]), prompt))
    last, wanted = len(ordered) - 1, min(count, len(ordered))
    return [ordered[round(i * last / max(1, wanted - 1))] for i in range(wanted)]


def shards(prompts: list[Prompt], tokens: int) -> dict[str, list[Prompt]]:
    """Split prompts, in table order, into named shards of about `tokens` tokens; appending touches only the last.

    Tokens are estimated from the text, so that shards are the same for every tokenizer; a prompt that is longer has a
    shard of its own.
    """
    return _split([(prompt, _estimated_tokens(prompt)) for prompt in prompts], tokens)


def parts(of: Mapping[str, list[Prompt]], tokens: int) -> dict[str, list[str]]:
    """The names of shards, in their order, in named parts of about `tokens` tokens."""
    return _split([(name, sum(map(_estimated_tokens, prompts))) for name, prompts in of.items()], tokens)


def _estimated_tokens(prompt: Prompt) -> int:
    return 1 + len(prompt.text.encode()) // BYTES_PER_TOKEN


def _split(sized: Iterable[tuple[object, int]], most: int) -> dict[str, list]:
    """Neighbours together while their sizes add up to no more than `most`."""
    groups, left = [], 0
    for item, size in sized:
        if not groups or size > left:
            groups.append([])
            left = most
        groups[-1].append(item)
        left -= size
    return {f"{i:05d}": group for i, group in enumerate(groups)}


def prompt_digest(prompt: Prompt) -> str:
    """A short fingerprint of everything a capture takes from a prompt."""
    return _fingerprint(astuple(prompt))


def digest(prompts: list[Prompt]) -> str:
    """A short fingerprint of everything a capture takes from these prompts."""
    return combined_digest((prompt.id, prompt_digest(prompt)) for prompt in prompts)


def combined_digest(prompts: Iterable[tuple[str, str]]) -> str:
    """The `digest` of prompts of which only id and `prompt_digest` are known, in their order."""
    return _fingerprint(list(prompts))


def _fingerprint(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _rows(path: Path, reader: csv.DictReader) -> Iterator[dict]:
    start = reader.line_num + 1
    try:
        for row in reader:
            yield row
            start = reader.line_num + 1
    except csv.Error as error:
        raise StudyError(
            f"{path}: the quotes of the row at line {start} do not fit ({error}); begin and end a quoted text with "
            'one ", and write " inside it as "".'
        ) from None


def _checked(path: Path, where: str, row: dict) -> Prompt:
    if "extra" in row or any(row[name] is None for name in COLUMNS):
        raise StudyError(
            f"{path}: {where} does not have one value per column; quote a text that holds tabs or line breaks."
        )
    prompt = Prompt(*(row[name] for name in COLUMNS))
    for column, value in (("prompt", prompt.id), ("set", prompt.set)):
        if not _NAME.fullmatch(value) or value == RESERVED:
            raise StudyError(
                f"{path}: {where} has the {column} name {value!r}; use letters, digits, '.', '_' and '-', starting "
                f"with a letter or digit, and not {RESERVED!r}."
            )
    if len(prompt.set) > LONGEST_SET:
        raise StudyError(f"{path}: {where} has a set name of {len(prompt.set)} characters; use at most {LONGEST_SET}.")
    if not prompt.text.strip():
        raise StudyError(f"{path}: the text of prompt {prompt.id!r} is empty; every prompt needs text.")
    if "\0" in prompt.text:
        raise StudyError(f"{path}: the text of prompt {prompt.id!r} holds a NUL byte; remove it.")
    return prompt
