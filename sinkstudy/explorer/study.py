"""What the explorer's page knows of a study: a description, and packed scores and maps per prompt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sinkstudy.explorer.packing import (
    MAP_STEPS,
    SCORE_STEPS,
    SLIDER,
    block_cells,
    pack_bytes,
    pack_maps,
    pack_scores,
    score_steps,
    stored_lengths,
)
from sinkstudy.stats.scores import prefix_scores
from sinkstudy.store import read_captures, read_maps, read_provenance, read_tokens

# The page stays under 25 MB, 5 of which are the plotting library.
PACKED_BYTES = 20_000_000
SCORE_BYTES = 14_000_000  # of these at most; maps get the rest
_BYTES_PER_SCORE = 7 / 3  # in the page if nothing can be compressed: 14 bits, in base64
_BYTES_PER_CELL = 4 / 3
_DENSE = (1 << 30, 1024, 512, 256, 128, 64, 32)
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Study:
    """`description`: plain JSON. `packs`: base64 texts by the names under which the description refers to them."""

    description: dict[str, object]
    packs: dict[str, str]


@dataclass(frozen=True)
class Shape:
    """Size of one prompt's capture: layers times heads, tokens, and whether its maps are stored."""

    cells: int
    n_tokens: int
    has_maps: bool


@dataclass(frozen=True)
class Thinning:
    """`dense`: every prefix length up to this is kept. `block`: maps are averaged over blocks of this many tokens."""

    dense: int
    block: int


def thinning(shapes: list[Shape]) -> Thinning:
    """The least thinning that keeps all prompts of all models within the budget; the coarsest where none does."""

    def scores(dense: int) -> float:
        return _BYTES_PER_SCORE * sum(s.cells * len(stored_lengths(s.n_tokens, dense)) for s in shapes)

    def maps(block: int) -> float:
        return _BYTES_PER_CELL * sum(s.cells * block_cells(s.n_tokens, block) for s in shapes if s.has_maps)

    dense = next((dense for dense in _DENSE if scores(dense) <= SCORE_BYTES), _DENSE[-1])
    left = PACKED_BYTES - scores(dense)
    return Thinning(dense, next((block for block in _BLOCKS if maps(block) <= left), _BLOCKS[-1]))


def read_study(captures: Mapping[str, list[Path]], thresholds: list[float], threshold: float) -> Study:
    """Everything the page shows, from each model's capture files.

    Sink decisions are exact at `thresholds`, the configured ones, and at every step of the page's slider, which starts
    at `threshold`. Raises StudyError for damaged captures and for thresholds too close to each other.
    """
    thin = thinning([shape for paths in captures.values() for shape in _shapes(paths)])
    levels = sorted({*SLIDER, *thresholds})
    packs: dict[str, str] = {}
    models = []
    for model, paths in captures.items():
        prompts = []
        for path in paths:
            for capture in read_captures([path]):
                name = f"{len(models)}-{len(prompts)}"
                score = prefix_scores(capture.sink_mass, capture.row_sum)  # (layer, head, query)
                lengths = stored_lengths(capture.n_tokens, thin.dense)
                kind, packs[f"scores-{name}"] = pack_scores(score_steps(score[..., lengths - 1], lengths, levels))
                maps = _maps(path, capture.prompt, len(capture.layers), thin.block)
                if maps is not None:
                    packs[f"maps-{name}"] = pack_bytes(maps)
                prompts.append(
                    {
                        "id": capture.prompt,
                        "set": capture.set,
                        "tokens": read_tokens(path, capture.prompt),
                        "lengths": lengths.tolist(),
                        "scores": f"scores-{name}",
                        "type": kind,
                        "maps": None if maps is None else f"maps-{name}",
                    }
                )
                layers, heads = capture.layers.tolist(), score.shape[1]
        origin = read_provenance(paths[0])
        models.append(
            {
                "name": model,
                "origin": f"{origin['source']}, {origin['dtype']}, bos {origin['bos']}",
                "layers": layers,
                "heads": heads,
                "prompts": prompts,
            }
        )
    description = {
        "threshold": threshold,
        "thresholds": levels,
        "dense": thin.dense if thin.dense < _DENSE[0] else None,
        "block": thin.block,
        "scoreSteps": SCORE_STEPS,
        "mapSteps": MAP_STEPS,
        "models": models,
    }
    return Study(description, packs)


def _shapes(paths: list[Path]) -> Iterator[Shape]:
    for path in paths:
        for capture in read_captures([path]):
            layers, heads, n = capture.sink_mass.shape
            yield Shape(layers * heads, n, read_maps(path, capture.prompt, 0) is not None)


def _maps(path: Path, prompt: str, layers: int, block: int) -> np.ndarray | None:
    """Packed maps (layer, head, cell) uint8, or None where the capture holds none."""
    parts = (read_maps(path, prompt, row) for row in range(layers))
    packed = [pack_maps(part, block) for part in parts if part is not None]
    return np.stack(packed) if packed else None
