"""The HDF5 capture file: one group per prompt, written whole or not at all.

Layout::

    /{prompt}/token_ids    (query,) int32
    /{prompt}/sink_mass    (layer, head, query) float32
    /{prompt}/key_mass     (layer, head, query, key_class) float32
    /{prompt}/row_sum      (layer, head, query) float32, only where rows sum to less than 1 (learned sinks)
    /{prompt}/attention    (layer, head, query, key) float16, only up to maps_max_tokens

Attributes, all of the file: `schema` and `complete`, provenance, `prompts` (how many), `key_classes` (the last axis of
key_mass) and `layers`, the true layer indices along the layer axis: in some models only some layers attend.
One per prompt, in the order of the groups: `sets`, `n_tokens`, `row_sum_errors` and `output_norm` (prompt, layer, head)
float32, mean over queries, NaN where it could not be measured. One per token that occurs: `vocabulary_ids` and
`vocabulary`, each decoded by itself. These are no datasets of each prompt, as one more dataset takes a fifth of a short
prompt's forward pass.

`offsets` (prompt, array) int64 says where in the file the bytes of each of `arrays` begin, 0 where they are packed.
Behind all that a `seal`: captures are not to be changed.
"""

from sinkstudy.store.reading import (
    Capture,
    open_capture,
    read_captures,
    read_maps,
    read_provenance,
    read_tokens,
)
from sinkstudy.store.writing import CaptureWriter, PromptRecord

__all__ = [
    "Capture",
    "CaptureWriter",
    "PromptRecord",
    "open_capture",
    "read_captures",
    "read_maps",
    "read_provenance",
    "read_tokens",
]
