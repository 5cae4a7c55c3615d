"""Compression of scores and maps for the page, without changing a single sink decision.

Score steps: instead of masses the page gets q_k = score_k * k * SCORE_STEPS, rounded, at every stored length k, as
differences along k. Every score is then within 1 / (2 * SCORE_STEPS * k), and where rounding would carry it across
one of the thresholds it goes to the next step on the right side instead.
"""

import base64
import gzip

import numpy as np

from sinkstudy.errors import StudyError

SCORE_STEPS = 1 << 14
MAP_STEPS = 255  # quantisation steps of the square root, which is finer near 0, where most of a map lies
POSITION_STEPS = 63  # What positions receive has coarser steps, because there is more of it.
SLIDER = tuple(i / 100 for i in range(1, 101))  # thresholds that the page offers besides the configured ones


def stored_lengths(n: int, dense: int) -> np.ndarray:
    """Prefix lengths kept of a prompt of `n` tokens: all up to `dense`, then dense / 4 per doubling, and n itself.

    `dense` is a power of 2, 32 or more.
    """
    lengths = list(range(1, min(n, dense) + 1))
    while lengths[-1] < n:
        doublings = (lengths[-1] // dense).bit_length() - 1
        lengths.append(lengths[-1] + 4 * 2**doublings)
    return np.array([*lengths[:-1], n])


def score_steps(score: np.ndarray, lengths: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """Quantised scores: (layer, head, length) float64 to int64 of the same shape.

    `q / (SCORE_STEPS * k) >= t` in float64 equals `score >= t` for every t of `thresholds`. Raises StudyError where
    two thresholds are too close for that.
    """
    scale = SCORE_STEPS * lengths.astype(float)
    levels = np.unique(thresholds)
    passed = np.searchsorted(levels, score, side="right")  # how many thresholds each score reaches
    steps = np.rint(score * scale)
    steps += np.sign(passed - np.searchsorted(levels, steps / scale, side="right"))
    if (np.searchsorted(levels, steps / scale, side="right") != passed).any():
        close = int(np.diff(levels).argmin())
        raise StudyError(
            f"sinks.thresholds: {levels[close]!r} and {levels[close + 1]!r} are too close for the explorer, whose "
            f"slider has steps of {SLIDER[0]:g}; move one apart by 1/{SCORE_STEPS} or leave it out."
        )
    return steps.astype(np.int64)


def pack_scores(steps: np.ndarray) -> tuple[str, str]:
    """Type (`int16` or `int32`) and packed bytes of the differences along the length axis of (layer, head, length)."""
    differences = np.diff(steps, axis=-1, prepend=0)
    kind = "int16" if np.abs(differences).max(initial=0) < 1 << 15 else "int32"
    values = differences.astype(np.dtype(kind).newbyteorder("<")).ravel()
    # All low bytes come before all high bytes, because the latter compress to almost nothing.
    return kind, pack_bytes(values.view(np.uint8).reshape(-1, values.itemsize).T)


def block_cells(n: int, block: int) -> int:
    """Stored cells of one causal map of `n` tokens in blocks of `block` x `block`."""
    side = -(-n // block)
    return side * (side + 1) // 2


def pack_maps(maps: np.ndarray, block: int) -> np.ndarray:
    """Maps (head, query, key) to uint8 (head, cell): lower triangle, averages over blocks of causal cells."""
    starts = np.arange(0, maps.shape[-1], block)
    causal = np.tril(np.ones(maps.shape[-2:]))

    def blocks(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, starts, axis=-2), starts, axis=-1)

    rows, columns = np.tril_indices(len(starts))
    mean = (blocks(causal * maps) / np.maximum(blocks(causal), 1))[:, rows, columns]
    return np.rint(MAP_STEPS * np.sqrt(np.clip(mean, 0, 1))).astype(np.uint8)


def pack_positions(mass: np.ndarray, block: int) -> np.ndarray:
    """Attention received, (layer, head, key), to uint8 of shape (layer, head, ceil(key / block)), averaged over blocks
    of `block` keys; NaN, that of the last key, is left out and is 0 in a block of its own."""
    n = mass.shape[-1]
    starts = np.arange(0, n, block)
    known = np.isfinite(mass)
    total = np.add.reduceat(np.where(known, mass, 0).astype(float), starts, axis=-1)
    mean = total / np.maximum(np.add.reduceat(known, starts, axis=-1, dtype=int), 1)
    return np.rint(POSITION_STEPS * np.sqrt(np.clip(mean, 0, 1))).astype(np.uint8)


def pack_bytes(values: np.ndarray) -> str:
    """Base64 of the gzip of an array's bytes; the same array gives the same text."""
    return base64.b64encode(gzip.compress(values.tobytes(), compresslevel=6, mtime=0)).decode("ascii")
