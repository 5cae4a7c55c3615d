"""What the explorer's page knows of a study: a description, and packed scores and maps per prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sinkstudy.explorer.packing import (
    MAP_STEPS,
    POSITION_STEPS,
    SCORE_STEPS,
    SLIDER,
    block_cells,
    pack_bytes,
    pack_maps,
    pack_positions,
    pack_scores,
    score_steps,
    stored_lengths,
)
from sinkstudy.explorer.replacement import read_costs, read_plan
from sinkstudy.stats.positions import received_of
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.store import Capture, Expected, open_capture
from sinkstudy.store.reading import CaptureFile

# The page stays under 25 MB: scores and positions have a limit each, and maps get the rest.
PACKED_BYTES = 24_000_000
SCORE_BYTES = 13_000_000
POSITION_BYTES = 8_000_000
_BYTES_PER_SCORE = 7 / 3  # in the page, if nothing can be compressed: 14 bits in base64
_BYTES_PER_CELL = 4 / 3
_BYTES_PER_POSITION = 0.6  # SmolLM2 takes 0.41 on whole passages.
_BYTES_PER_HEAD = 2 * 4 * 4 / 3  # A head has an output norm and a value drain, in base64.
_DENSE = (1 << 30, 1024, 512, 256, 128, 64, 32)
_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Study:
    """`description`: plain JSON. `packs`: base64 texts by the names under which the description refers to them."""

    description: dict[str, object]
    packs: dict[str, str]


@dataclass(frozen=True)
class Shape:
    """Size of one prompt's capture: layers times heads, tokens, and whether its maps and what every position receives
    are stored."""

    cells: int
    n_tokens: int
    has_maps: bool
    has_positions: bool = False


@dataclass(frozen=True)
class Thinning:
    """`dense`: every prefix length up to this is kept. `block`: maps are averaged over blocks of this many tokens, and
    over `position_block` what positions receive."""

    dense: int
    block: int
    position_block: int = 1


def thinning(shapes: list[Shape]) -> Thinning:
    """The least thinning that keeps all prompts of all models within the budget; the coarsest where none does."""

    def scores(dense: int) -> float:
        lengths = (_BYTES_PER_SCORE * len(stored_lengths(s.n_tokens, dense)) for s in shapes)
        return sum(s.cells * (of_prompt + _BYTES_PER_HEAD) for s, of_prompt in zip(shapes, lengths, strict=True))

    def positions(block: int) -> float:
        return _BYTES_PER_POSITION * sum(s.cells * -(-s.n_tokens // block) for s in shapes if s.has_positions)

    def maps(block: int) -> float:
        return _BYTES_PER_CELL * sum(s.cells * block_cells(s.n_tokens, block) for s in shapes if s.has_maps)

    dense = next((dense for dense in _DENSE if scores(dense) <= SCORE_BYTES), _DENSE[-1])
    places = next((block for block in _BLOCKS if positions(block) <= POSITION_BYTES), _BLOCKS[-1])
    left = PACKED_BYTES - scores(dense) - positions(places)
    return Thinning(dense, next((block for block in _BLOCKS if maps(block) <= left), _BLOCKS[-1]), places)


def read_study(
    captures: Mapping[str, list[Path]],
    thresholds: list[float],
    threshold: float,
    expected: Mapping[str, Expected] | None = None,
    costs: Mapping[str, Path] | None = None,
    plans: Mapping[str, list[Path]] | None = None,
) -> Study:
    """Everything the page shows, from each model's capture files.

    Sink decisions are exact at `thresholds`, the configured ones, and at every step of the page's slider, which starts
    at `threshold`. `expected`: by model, which captures these must be. `costs` and `plans`: by model, its table of head
    costs and its plans, where it has any. Raises StudyError for damaged captures and for thresholds too close to each
    other.
    """
    levels = sorted({*SLIDER, *thresholds})
    packs: dict[str, str] = {}
    of = {model: (expected or {}).get(model) for model in captures}
    shapes: list[Shape] = []  # the thinning depends on the size of all captures together
    for model, path in ((model, path) for model, paths in captures.items() for path in paths):
        with open_capture(path, of[model]) as file:
            shapes += [_shape(file, prompt) for prompt in file.prompts]
    thin = thinning(shapes)
    models = [
        _model(f"{i}", model, captures[model], of[model], thin, levels, packs) for i, model in enumerate(captures)
    ]
    for described in models:
        name, grid = described["name"], (described["layers"], described["heads"])
        described["costs"] = read_costs(costs[name], *grid) if name in (costs or {}) else {}
        described["plans"] = [read_plan(path, *grid) for path in (plans or {}).get(name, [])]
    description = {
        "threshold": threshold,
        "thresholds": levels,
        "dense": thin.dense if thin.dense < _DENSE[0] else None,
        "block": thin.block,
        "positionBlock": thin.position_block,
        "scoreSteps": SCORE_STEPS,
        "mapSteps": MAP_STEPS,
        "positionSteps": POSITION_STEPS,
        "models": models,
    }
    return Study(description, packs)


def _model(
    number: str,
    model: str,
    paths: list[Path],
    expected: Expected | None,
    thin: Thinning,
    levels: list[float],
    packs: dict[str, str],
) -> dict[str, object]:
    """The description of one model; its packs are added to `packs` under names that begin with its number."""
    prompts = []
    for path in paths:
        with open_capture(path, expected) as file:
            for prompt in file.prompts:
                prompts.append(_prompt(f"{number}-{len(prompts)}", file, prompt, thin, levels, packs))
            layers, heads = file.layers.tolist(), file.shapes(prompt)["output_norm"][1]
            origin = file.attributes
    return {
        "name": model,
        "origin": f"{origin['source']}, {origin['dtype']}, bos {origin['bos']}"
        + (", scores at some lengths" if origin["keep"] == "lengths" else ""),
        "layers": layers,
        "heads": heads,
        "prompts": prompts,
    }


def _receivers(capture: Capture) -> list[tuple[int, float]] | None:
    """Per layer and head the position that receives most attention from later queries of the whole prompt, and how
    much to three decimals; None where positions were not captured."""
    if (found := received_of(capture)) is None:
        return None
    masses = found.strongest_mass.astype(float).round(3)
    return list(zip(found.strongest.ravel().tolist(), masses.ravel().tolist(), strict=True))


def _prompt(
    name: str, file: CaptureFile, prompt: str, thin: Thinning, levels: list[float], packs: dict[str, str]
) -> dict[str, object]:
    """The description of one prompt; its packs are added to `packs` under names that end with `name`."""
    capture = file.capture(prompt)
    prefixes = Prefixes([capture])
    every = capture.kept is None
    lengths = stored_lengths(capture.n_tokens, thin.dense) if every else prefixes.lengths
    score = prefixes.scores[0][..., [prefixes.place(n) for n in lengths]]  # (layer, head, length)
    kind, packs[f"scores-{name}"] = pack_scores(score_steps(score, lengths, levels))
    has_maps = _shape(file, prompt).has_maps
    if has_maps:
        rows = range(len(file.layers))
        maps = np.stack([pack_maps(file.maps(prompt, row), thin.block) for row in rows])  # (layer, head, cell)
        packs[f"maps-{name}"] = pack_bytes(maps)
    if capture.position_mass is not None:
        packs[f"positions-{name}"] = pack_bytes(pack_positions(capture.position_mass, thin.position_block))
    drain = np.full(score.shape[:2], np.nan) if capture.value_drain is None else capture.value_drain
    packs[f"heads-{name}"] = pack_bytes(np.stack([capture.output_norm, drain]).astype("<f4"))
    return {
        "id": prompt,
        "set": capture.set,
        "tokens": capture.tokens,
        "lengths": lengths.tolist(),
        "scores": f"scores-{name}",
        "type": kind,
        "maps": f"maps-{name}" if has_maps else None,
        "positions": f"positions-{name}" if capture.position_mass is not None else None,
        "ofHeads": f"heads-{name}",
        "receivers": _receivers(capture),
    }


def _shape(file: CaptureFile, prompt: str) -> Shape:
    shapes = file.shapes(prompt)
    layers, heads = shapes["output_norm"]
    return Shape(layers * heads, shapes["token_ids"][0], "attention" in shapes, "position_mass" in shapes)
