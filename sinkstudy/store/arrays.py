"""Labelled, checked arrays of a capture file, by h5py's low-level interface.

A capture of short prompts is thousands of small datasets; h5py's high-level calls cost five times as much for each.
What is written is plain HDF5: gzip and shuffle for large arrays, readable without plugins.
"""

from functools import lru_cache

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t
from zlib_ng import zlib_ng

AXES = ("layer", "head", "query", "key")
_CHUNK_BYTES = 1 << 20
_COMPACT_BYTES = 1 << 15  # smaller arrays lie in their own header
_PACK_FROM_BYTES = 1 << 16  # packing smaller arrays costs more time than it saves room
_LEVEL = 2  # of zlib-ng; packs maps as well as zlib's level 4, in a third of its time


def create_array(group: h5g.GroupID, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    """Write an array with its axes labelled. Its header or Fletcher-32 makes a flipped bit an error at reading."""
    values = np.ascontiguousarray(values)
    space, layout = _checked(values.shape, values.nbytes)
    kind = _number(values.dtype)
    dataset = h5d.create(group, name.encode(), kind, space, layout)
    dataset.write(h5s.ALL, h5s.ALL, values, kind)
    _label(dataset, axes)


def read_array(place: h5f.FileID, name: str, dtype: type) -> np.ndarray:
    """The whole of a numeric array. Raises KeyError or OSError when it is missing or damaged."""
    dataset = h5d.open(place, name.encode())
    values = np.empty(dataset.shape, dtype)
    if values.size:
        dataset.read(h5s.ALL, h5s.ALL, values, _number(values.dtype))
    return values


class Maps:
    """The `attention` dataset of one prompt: packed layer by layer as they come, written when they are all there.

    Packed, a layer takes a fourteenth of the float32 map it was computed as.
    """

    def __init__(self, heads: int, n_tokens: int):
        self._shape = (heads, n_tokens, n_tokens)
        self._heads_together = max(1, min(heads, _CHUNK_BYTES // (2 * n_tokens * n_tokens)))
        self._layers: list[list[bytes]] = []

    def add_layer(self, attention: np.ndarray) -> None:
        """`attention` (head, query, key), stored as float16."""
        attention = attention.astype(np.float16, copy=False)
        heads, step = self._shape[0], self._heads_together
        padded = -(-heads // step) * step  # a chunk on the edge is stored whole
        if padded > heads:
            attention = np.concatenate([attention, np.zeros((padded - heads, *self._shape[1:]), np.float16)])
        self._layers.append([_pack(attention[start : start + step]) for start in range(0, padded, step)])

    def write(self, group: h5g.GroupID) -> None:
        shape, chunk = (len(self._layers), *self._shape), (1, self._heads_together, *self._shape[1:])
        space, layout = _packed(shape, chunk)
        dataset = h5d.create(group, b"attention", _number(np.dtype(np.float16)), space, layout)
        _label(dataset, AXES)
        for layer, chunks in enumerate(self._layers):
            for i, packed in enumerate(chunks):
                dataset.write_direct_chunk((layer, i * self._heads_together, 0, 0), packed)


def _pack(chunk: np.ndarray) -> bytes:
    """What HDF5's shuffle and gzip filters make of a chunk of two-byte numbers; the stream carries its checksum."""
    shuffled = np.frombuffer(chunk.tobytes(), np.uint8).reshape(-1, 2).T
    return zlib_ng.compress(shuffled.tobytes(), _LEVEL)


def _label(dataset: h5d.DatasetID, axes: tuple[str, ...]) -> None:
    """What H5DSset_label does for one axis after the other."""
    labels, stored, given = _labels(axes)
    h5a.create(dataset, b"DIMENSION_LABELS", stored, _space(labels.shape)).write(labels, given)


@lru_cache(maxsize=64)
def _labels(axes: tuple[str, ...]) -> tuple[np.ndarray, h5t.TypeID, h5t.TypeID]:
    """Labels, with their type as stored (UTF-8 of any length) and as given: of one length, which converts fastest."""
    labels = np.array(axes, h5py.string_dtype("utf-8", max(map(len, axes))))
    return labels, h5t.py_create(np.dtype(h5py.string_dtype()), logical=True), h5t.py_create(labels.dtype, logical=True)


@lru_cache(maxsize=4096)
def _checked(shape: tuple[int, ...], nbytes: int) -> tuple[h5s.SpaceID, h5p.PropDCID]:
    if nbytes <= _COMPACT_BYTES:
        layout = _layout()
        layout.set_layout(h5d.COMPACT)
        return _space(shape), layout
    chunk = shape if nbytes <= _CHUNK_BYTES else (1, *shape[1:])
    space, layout = _packed(shape, chunk) if nbytes >= _PACK_FROM_BYTES else (_space(shape), _chunked(chunk))
    layout.set_fletcher32()
    return space, layout


def _packed(shape: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[h5s.SpaceID, h5p.PropDCID]:
    layout = _chunked(chunk)
    layout.set_shuffle()
    layout.set_deflate(_LEVEL)
    return _space(shape), layout


def _chunked(chunk: tuple[int, ...]) -> h5p.PropDCID:
    layout = _layout()
    layout.set_chunk(chunk)
    return layout


def _layout() -> h5p.PropDCID:
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)  # the same captures are the same bytes
    return layout


@lru_cache(maxsize=4096)
def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape)


@lru_cache(maxsize=64)
def _number(dtype: np.dtype) -> h5t.TypeID:
    return h5t.py_create(dtype)
