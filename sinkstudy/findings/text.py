"""How findings print: numbers, where they come from, and text that others wrote.

Markdown templates print through `finalize`, so whatever is not made here as `Markdown` is escaped, in this one place.
"""

import math
import re
import unicodedata
from urllib.parse import quote

_OPEN, _CLOSE = "\ue000", "\ue001"  # private characters around a footnote's text until it has a number
# An underscore inside a word is no emphasis, and names are full of them.
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HIDDEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # Unicode categories: characters that are not seen, or that turn lines


class Markdown(str):
    """Text that is Markdown already and is not to be escaped."""


def finalize(value: object) -> str:
    """What a template prints of a value: undefined ones by that word, whole numbers without decimals, text escaped."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "undefined"
    if isinstance(value, Markdown):
        return value
    return f"{value:.9g}" if isinstance(value, float) else _SPECIAL.sub(r"\\\g<0>", visible(str(value)))


def visible(text: str) -> str:
    """`text` on one line, with characters that are not seen as their code points: `U+202E`."""
    one_line = " ".join(re.split(r"[\t\r\n]+", text))
    return "".join(f"U+{ord(c):04X}" if unicodedata.category(c) in _HIDDEN else c for c in one_line)


def code(text: object) -> Markdown:
    """A code span (not for table cells) that no backtick within ends."""
    shown = visible(str(text))
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    space = " " if "`" in shown else ""
    return Markdown(f"{fence}{space}{shown}{space}{fence}")


def link(text: object, url: object) -> Markdown:
    """A link to a web address; the text alone where the address is anything else."""
    if not re.match(r"https?://", str(url)):
        return Markdown(finalize(text))
    return Markdown(f"[{finalize(text)}](<{quote(str(url), safe=':/?#@!$&()*+,;=%~')}>)")


def note(file: str, rows: str) -> Markdown:
    """A footnote that says where the numbers before it come from: a file, and which of its rows."""
    return Markdown(f"{_OPEN}{code(file)}: {finalize(rows)}{_CLOSE}")


def row_note(row: dict[str, object], *columns: str) -> Markdown:
    """The footnote of a row (see `Tables.rows`) that is found by the values of these columns."""
    given = [f"{c}={row[c]:.9g}" if isinstance(row[c], float) else f"{c}={row[c]}" for c in columns if row[c] == row[c]]
    empty = [f"{c} empty" for c in columns if row[c] != row[c]]
    return note(str(row["file"]), ", ".join(given + empty))


def number_footnotes(text: str) -> str:
    """Number the footnotes in the order of their appearance, and list them at the end.

    The same text has one number; footnotes that follow each other directly become one.
    """
    numbers: dict[str, int] = {}

    def mark(match: re.Match[str]) -> str:
        return f"[^{numbers.setdefault(match[1].replace(_CLOSE + _OPEN, '; '), len(numbers) + 1)}]"

    marked = re.sub(f"{_OPEN}(.*?){_CLOSE}(?!{_OPEN})", mark, text)
    notes = "\n".join(f"[^{number}]: {note}" for note, number in numbers.items())
    return f"{marked}\n\n{notes}" if notes else marked


def percent(part: float | None, whole: float = 1.0) -> str:
    """`part` of `whole` in percent with two decimals, as the original study prints it."""
    return "undefined" if part is None or math.isnan(part) else f"{100 * part / whole:.2f}%"


def show(value: float | None, form: str = ".3f") -> str:
    """A number in a format; a tiny negative one is not -0.000, and nothing has no exponent."""
    if value is None or math.isnan(value):
        return "undefined"
    if value == 0 and form.endswith("e"):
        return "0"
    return f"{value:z{form}}"


def count(value: float) -> str:
    """A mean count: no decimals where it is whole, else one."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def interval(row: dict[str, float], name: str, form: str = "%") -> str:
    """The interval in `{name}_low` and `{name}_high` of a row."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(low):
        return "undefined"
    return " to ".join(percent(end) if form == "%" else show(end, form) for end in (low, high))
