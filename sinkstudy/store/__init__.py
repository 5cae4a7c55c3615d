"""The files of the study: captures (HDF5), tables (CSV), and the one way in which any file gets its name.

A capture has a group per prompt with the datasets of `LAYOUT`, of which `tokens`, each decoded by itself, are UTF-8 of
fixed length. Attributes of a prompt: `set`, `digest` (of its id, set and text), `row_sum_error`. Attributes of a file:
`schema` and `complete`, provenance, `prompts` (how many), `first_token_id` (-1 where prompts begin differently),
`key_classes` (the last axis of key_mass) and `layers` (true layer indices: in some models only some layers attend).

With the attribute `keep` = lengths, means at some lengths stand in place of the masses of every query, see `kept`.

All that the readers read has a checksum: HDF5 checks its headers by itself, and every dataset has fletcher32. Text of
variable length would have none, so there is none but the labels of the axes.
"""

from sinkstudy.store.atomic import atomic_write, write_file
from sinkstudy.store.kept import Keep, Kept
from sinkstudy.store.reading import (
    Capture,
    Expected,
    open_capture,
    read_captures,
    read_provenance,
)
from sinkstudy.store.writing import write_capture

__all__ = [
    "Capture",
    "Expected",
    "Keep",
    "Kept",
    "atomic_write",
    "open_capture",
    "read_captures",
    "read_provenance",
    "write_capture",
    "write_file",
]
