"""The capture of one prompt: arrays with their types and axes, which have to fit each other."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, get_origin, get_type_hints

import numpy as np

from sinkstudy.measures.kept import Kept, kept
from sinkstudy.measures.received import Received, received

_LARGEST_MASS = 1.1  # Rows of half precision sum to 1 up to 0.05.


@dataclass(frozen=True)
class Capture:
    """One prompt's capture without its maps, with type and axes of what is stored. What could not be measured is NaN,
    what is not stored is None.

    `layers`: true layer indices. `row_sum`: only where rows sum to less than 1 (learned sinks). `activation`: the norm
    of the first token's residual entering a layer over the median of the others' norms; `activation_channel`,
    `channel_value`: its largest channels. `value_drain`: the same ratio for the values that a head reads.
    `position_mass`: the mean, over the queries after a key, of their attention to it, up to positions_max_tokens; NaN
    for the last key. `text_tokens`: of the whole text, where it was cut to the model's context. `row_sum_error`: the
    largest distance of a row of attention from a sum of 1. `kept` stands in place of `sink_mass`, `key_mass` and
    `row_sum`, and `received` of `position_mass`, where a capture keeps lengths.
    """

    prompt: str
    set: str
    layers: np.ndarray
    token_ids: Annotated[np.ndarray, np.int32, "query"]
    tokens: Annotated[list[str], None, "query"]
    output_norm: Annotated[np.ndarray, np.float32, "layer head"]
    sink_mass: Annotated[np.ndarray | None, np.float32, "layer head query"] = None
    key_mass: Annotated[np.ndarray | None, np.float32, "layer head query key_class"] = None
    row_sum: Annotated[np.ndarray | None, np.float32, "layer head query"] = None
    activation: Annotated[np.ndarray | None, np.float32, "layer"] = None
    activation_channel: Annotated[np.ndarray | None, np.int32, "layer channel"] = None
    channel_value: Annotated[np.ndarray | None, np.float32, "layer channel"] = None
    value_drain: Annotated[np.ndarray | None, np.float32, "layer head"] = None
    position_mass: Annotated[np.ndarray | None, np.float32, "layer head key"] = None
    text_tokens: int | None = None
    row_sum_error: float | None = None
    kept: Kept | None = None
    received: Received | None = None

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], **about: object) -> "Capture":
        """From what `arrays` of a capture gives, and the other fields."""
        parts = {"kept": _part(Kept, arrays), "received": _part(Received, arrays)}
        own = {field.name for field in fields(cls)}
        return cls(**{name: array for name, array in arrays.items() if name in own}, **parts, **about)

    @property
    def arrays(self) -> dict[str, np.ndarray | list[str]]:
        """All that is measured, by its name in LAYOUT."""
        held = vars(self) | (vars(self.kept) if self.kept else {}) | (vars(self.received) if self.received else {})
        return {name: held[name] for name in LAYOUT if held.get(name) is not None}

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values() if isinstance(array, np.ndarray))

    def check(self, key_classes: int) -> None:
        """Raise ValueError where arrays do not fit each other or hold what attention cannot be.

        `key_classes`: how long the last axis of key_mass is.
        """
        n, arrays = self.n_tokens, self.arrays
        sizes = {"layer": len(self.layers), "query": n, "key": n, "key_class": key_classes}
        fit = all(_fit(np.shape(array), LAYOUT[name][1], sizes) for name, array in arrays.items())
        if not fit or not all(sizes.values()) or sizes["layer"] != len(set(np.asarray(self.layers).tolist())):
            raise ValueError(f"prompt {self.prompt!r} has axes that do not fit each other")
        # `position_mass` is not among them, since that of the last key is undefined.
        if not all(is_attention(arrays[name]) for name in arrays.keys() & {"key_mass", "row_sum", "mean_key_mass"}):
            raise ValueError(f"prompt {self.prompt!r} holds attention that is not between 0 and 1")
        sink, keys = self.sink_mass, self.key_mass
        if self.kept:
            sink, keys, lengths = self.kept.mean_sink_mass, self.kept.mean_key_mass, self.kept.lengths
            if (np.diff(lengths) < 1).any() or lengths[0] < 1 or lengths[-1] != n:
                raise ValueError(f"prompt {self.prompt!r} has lengths that are not those of prefixes")
        if sink is None or keys is None or not np.array_equal(keys[..., 0], sink.astype(np.float32)):
            raise ValueError(f"sink_mass and key_mass of prompt {self.prompt!r} contradict each other")


# Each array of a prompt has a type and axes, in the order written; so have its maps, which are no part of a Capture.
LAYOUT = {
    name: (hint.__metadata__[0], tuple(hint.__metadata__[1].split()))
    for part in (Capture, Kept, Received)
    for name, hint in get_type_hints(part, include_extras=True).items()
    if get_origin(hint) is Annotated
} | {"attention": (np.float16, ("layer", "head", "query", "key"))}


@dataclass(frozen=True)
class Keep:
    """What to keep: the lengths that a study names, and the thresholds above which queries are counted."""

    lengths: Sequence[int]
    thresholds: Sequence[float]

    def of(self, capture: Capture) -> Capture:
        """A capture with what grows with its queries replaced by `Kept` and `Received`."""
        means = kept(capture.key_mass, capture.row_sum, self.lengths, self.thresholds)
        positions = None if capture.position_mass is None else received(capture.position_mass)
        gone = dict.fromkeys(("sink_mass", "key_mass", "row_sum", "position_mass"))
        return replace(capture, kept=means, received=positions, **gone)


def is_attention(masses: np.ndarray) -> bool:
    """Whether all of them can be attention, up to the rounding of half precision."""
    return bool(((masses >= 0) & (masses <= _LARGEST_MASS)).all())


def _part(kind: type[Kept | Received], arrays: dict[str, np.ndarray]) -> Kept | Received | None:
    """A part of a capture; None where nothing of it is there."""
    held = {field.name: arrays[field.name] for field in fields(kind) if field.name in arrays}
    return kind(**held) if held else None


def _fit(shape: tuple[int, ...], axes: tuple[str, ...], sizes: dict[str, int]) -> bool:
    """Whether an array's axes are as long as those of the same name before it, which `sizes` gathers."""
    return len(shape) == len(axes) and all(sizes.setdefault(*axis) == axis[1] for axis in zip(axes, shape, strict=True))
