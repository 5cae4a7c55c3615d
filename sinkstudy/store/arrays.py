"""Labelled arrays of a capture file, by h5py's low-level interface.

A capture of short prompts is thousands of small datasets; h5py's high-level calls cost several times as much for each.
What is written is plain HDF5: gzip and shuffle for large arrays, readable without plugins. The bytes of small ones lie
side by side, so that a reader who knows where takes them out without HDF5 in a fifth of the time.
"""

import os
from collections.abc import Iterator
from functools import lru_cache

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5f, h5g, h5p, h5s, h5t
from zlib_ng import zlib_ng

from sinkstudy.store.disk import Disk

AXES = ("layer", "head", "query", "key")
_CHUNK_BYTES = 1 << 20
_PACK_FROM_BYTES = 1 << 16  # packing smaller arrays costs more time than it saves room
_LEVEL = 2  # of zlib-ng; packs maps as well as zlib's level 4, in a third of its time


class Maps:
    """The `attention` dataset of one prompt: packed layer by layer as they come, to be written when all are there.

    Packed, a layer takes a fourteenth of the float32 map it was computed as.
    """

    def __init__(self, heads: int, n_tokens: int):
        self._map_shape = (heads, n_tokens, n_tokens)
        self._heads_together = max(1, min(heads, _CHUNK_BYTES // (2 * n_tokens * n_tokens)))
        self._layers: list[list[bytes]] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._layers), *self._map_shape)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (1, self._heads_together, *self._map_shape[1:])

    def add_layer(self, attention: np.ndarray) -> None:
        """`attention` (head, query, key), stored as float16."""
        attention = attention.astype(np.float16, copy=False)
        heads, step = self._map_shape[0], self._heads_together
        padded = -(-heads // step) * step  # a chunk on the edge is stored whole
        if padded > heads:
            attention = np.concatenate([attention, np.zeros((padded - heads, *self._map_shape[1:]), np.float16)])
        self._layers.append([_pack(attention[start : start + step]) for start in range(0, padded, step)])

    def chunks(self) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Where each packed chunk begins, and its bytes."""
        for layer, chunks in enumerate(self._layers):
            for i, packed in enumerate(chunks):
                yield (layer, i * self._heads_together, 0, 0), packed


class ArrayWriter:
    """Writes arrays into the groups of the HDF5 file on `disk`. `packed`: offset and size of every packed chunk."""

    def __init__(self, disk: Disk):
        self.packed: list[tuple[int, int]] = []
        self._disk = disk

    def write(self, group: h5g.GroupID, name: str, values: np.ndarray, axes: tuple[str, ...]) -> int:
        """Write an array with its axes labelled. Says where in the file its bytes lie; 0 for one that is packed."""
        values = np.ascontiguousarray(values)
        kind = _number(values.dtype)
        if values.nbytes < _PACK_FROM_BYTES:
            dataset = _create(group, name, kind, values.shape, _plain(), axes)
            # HDF5 has set the room aside; to fill it by its own means takes longer than all else done here.
            offset = dataset.get_offset()
            self._disk.put(offset, values)
            return offset
        chunk = values.shape if values.nbytes <= _CHUNK_BYTES else (1, *values.shape[1:])
        dataset = _create(group, name, kind, values.shape, _packed(chunk, fletcher32=True), axes)
        dataset.write(h5s.ALL, h5s.ALL, values, kind)
        self._note_chunks(dataset)
        return 0

    def write_maps(self, group: h5g.GroupID, maps: Maps) -> None:
        """Write the `attention` dataset of a prompt. The stream of each chunk carries its checksum."""
        layout = _packed(maps.chunk_shape, fletcher32=False)
        dataset = _create(group, "attention", _number(np.dtype(np.float16)), maps.shape, layout, AXES)
        for place, packed in maps.chunks():
            dataset.write_direct_chunk(place, packed)
        self._note_chunks(dataset)

    def _note_chunks(self, dataset: h5d.DatasetID) -> None:
        dataset.chunk_iter(lambda chunk: self.packed.append((chunk.byte_offset, chunk.size)))


def read_plain(handle: int, offset: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array whose bytes lie side by side in an open file. Raises OSError where the file ends before they do."""
    values = np.empty(shape, dtype)
    if os.preadv(handle, [values], offset) != values.nbytes:
        raise OSError("it ends within an array")
    return values


def read_packed(file: h5f.FileID, name: str, dtype: type) -> np.ndarray:
    """The whole of a packed array. Raises KeyError or OSError when it is missing or damaged."""
    dataset = h5d.open(file, name.encode())
    values = np.empty(dataset.shape, dtype)
    dataset.read(h5s.ALL, h5s.ALL, values, _number(values.dtype))
    return values


def _pack(chunk: np.ndarray) -> bytes:
    """What HDF5's shuffle and gzip filters make of a chunk of two-byte numbers."""
    shuffled = np.frombuffer(chunk.tobytes(), np.uint8).reshape(-1, 2).T
    return zlib_ng.compress(shuffled.tobytes(), _LEVEL)


def _create(
    group: h5g.GroupID, name: str, kind: h5t.TypeID, shape: tuple[int, ...], layout: h5p.PropDCID, axes: tuple[str, ...]
) -> h5d.DatasetID:
    """A dataset with its axes labelled. Of several axes H5DSset_label would write all labels anew for each."""
    dataset = h5d.create(group, name.encode(), kind, _space(shape), layout)
    if len(axes) == 1:
        h5ds.set_label(dataset, 0, axes[0].encode())
        return dataset
    labels, stored, given = _labels(axes)
    h5a.create(dataset, b"DIMENSION_LABELS", stored, _space(labels.shape)).write(labels, given)
    return dataset


@lru_cache(maxsize=64)
def _labels(axes: tuple[str, ...]) -> tuple[np.ndarray, h5t.TypeID, h5t.TypeID]:
    """Labels, with their type as stored (UTF-8 of any length) and as given: of one length, which converts fastest."""
    labels = np.array(axes, h5py.string_dtype("utf-8", max(map(len, axes))))
    return labels, h5t.py_create(np.dtype(h5py.string_dtype()), logical=True), h5t.py_create(labels.dtype, logical=True)


@lru_cache(maxsize=1)
def _plain() -> h5p.PropDCID:
    layout = _layout()
    layout.set_layout(h5d.CONTIGUOUS)
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    return layout


def _packed(chunk: tuple[int, ...], *, fletcher32: bool) -> h5p.PropDCID:
    layout = _layout()
    layout.set_chunk(chunk)
    layout.set_shuffle()
    layout.set_deflate(_LEVEL)
    if fletcher32:
        layout.set_fletcher32()
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
