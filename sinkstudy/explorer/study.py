"""What the explorer's page knows of a study: a description, and packed scores and maps per prompt."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sinkstudy.explorer import packing
from sinkstudy.measures.captured import Capture
from sinkstudy.stats.positions import received_of
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.store import open_capture
from sinkstudy.store.captures import CaptureFile
from sinkstudy.store.tables import read_tables

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
    position_block: int


def thinning(shapes: list[Shape]) -> Thinning:
    """The least thinning that keeps all prompts of all models within the budget; the coarsest where none does."""

    def scores(dense: int) -> float:
        lengths = [len(packing.stored_lengths(s.n_tokens, dense)) for s in shapes]
        return sum(s.cells * (_BYTES_PER_SCORE * n + _BYTES_PER_HEAD) for s, n in zip(shapes, lengths, strict=True))

    def positions(block: int) -> float:
        return _BYTES_PER_POSITION * sum(s.cells * -(-s.n_tokens // block) for s in shapes if s.has_positions)

    def maps(block: int) -> float:
        return _BYTES_PER_CELL * sum(s.cells * packing.block_cells(s.n_tokens, block) for s in shapes if s.has_maps)

    def least(steps: Sequence[int], size: Callable[[int], float], most: float) -> int:
        return next((step for step in steps if size(step) <= most), steps[-1])

    dense, position_block = least(_DENSE, scores, SCORE_BYTES), least(_BLOCKS, positions, POSITION_BYTES)
    left = PACKED_BYTES - scores(dense) - positions(position_block)
    return Thinning(dense, least(_BLOCKS, maps, left), position_block)


def read_study(
    captures: Mapping[str, list[Path]],
    thresholds: list[float],
    threshold: float,
    costs: Mapping[str, Path] = {},
    plans: Mapping[str, list[Path]] = {},
) -> tuple[dict[str, object], dict[str, str]]:
    """Everything the page shows, from each model's capture files: a description, which is plain JSON, and base64 texts
    by the names under which the description refers to them.

    Sink decisions are exact at `thresholds`, the configured ones, and at every step of the page's slider, which starts
    at `threshold`. `costs` and `plans`: by model, its table of head costs and its plans, where it has any. Raises
    StudyError for damaged captures and for thresholds too close to each other.
    """
    levels = sorted({*packing.SLIDER, *thresholds})
    shapes: list[Shape] = []  # the thinning depends on the size of all captures together
    for paths in captures.values():
        for path in paths:
            with open_capture(path) as file:
                shapes += [_shape(file, prompt) for prompt in file.prompts]
    thin = thinning(shapes)
    models, packs = [], {}
    for i, (model, paths) in enumerate(captures.items()):
        prompts = []
        for path in paths:
            with open_capture(path) as file:
                for prompt in file.prompts:
                    described, packed = _prompt(f"{i}-{len(prompts)}", file, prompt, thin, levels)
                    prompts.append(described)
                    packs |= packed
                layers, heads = file.layers.tolist(), file.shapes(prompt)["output_norm"][1]
                origin = file.attributes
        lengths = ", scores at some lengths" if origin["keep"] == "lengths" else ""
        models.append(
            {
                "name": model,
                "origin": f"{origin['source']}, {origin['dtype']}, bos {origin['bos']}{lengths}",
                "layers": layers,
                "heads": heads,
                "prompts": prompts,
                "costs": _costs(costs[model], layers, heads) if model in costs else {},
                "plans": [_plan(path, layers, heads) for path in plans.get(model, [])],
            }
        )
    description = {
        "threshold": threshold,
        "thresholds": levels,
        "dense": thin.dense if thin.dense < _DENSE[0] else None,
        "block": thin.block,
        "positionBlock": thin.position_block,
        "scoreSteps": packing.SCORE_STEPS,
        "mapSteps": packing.MAP_STEPS,
        "positionSteps": packing.POSITION_STEPS,
        "models": models,
    }
    return description, packs


def _shape(file: CaptureFile, prompt: str) -> Shape:
    shapes = file.shapes(prompt)
    layers, heads = shapes["output_norm"]
    return Shape(layers * heads, shapes["token_ids"][0], "attention" in shapes, "position_mass" in shapes)


def _prompt(
    name: str, file: CaptureFile, prompt: str, thin: Thinning, levels: list[float]
) -> tuple[dict[str, object], dict[str, str]]:
    """The description of one prompt, and its packs under names that end with `name`."""
    capture = file.capture(prompt)
    prefixes = Prefixes([capture])
    lengths = packing.stored_lengths(capture.n_tokens, thin.dense) if capture.kept is None else prefixes.lengths
    score = prefixes.scores[0][..., [prefixes.place(n) for n in lengths]]  # (layer, head, length)
    kind, scores = packing.pack_scores(packing.score_steps(score, lengths, levels))
    packs = {"scores": scores}
    if "attention" in file.shapes(prompt):
        rows = range(len(file.layers))
        maps = np.stack([packing.pack_maps(file.maps(prompt, row), thin.block) for row in rows])  # (layer, head, cell)
        packs["maps"] = packing.pack_bytes(maps)
    if capture.position_mass is not None:
        packs["positions"] = packing.pack_bytes(packing.pack_positions(capture.position_mass, thin.position_block))
    drain = np.full(score.shape[:2], np.nan) if capture.value_drain is None else capture.value_drain
    packs["heads"] = packing.pack_bytes(np.stack([capture.output_norm, drain]).astype("<f4"))
    named = {what: f"{what}-{name}" for what in packs}
    description = {
        "id": prompt,
        "set": capture.set,
        "tokens": capture.tokens,
        "lengths": lengths.tolist(),
        "scores": named["scores"],
        "type": kind,
        "maps": named.get("maps"),
        "positions": named.get("positions"),
        "ofHeads": named["heads"],
        "receivers": _receivers(capture),
    }
    return description, {named[what]: pack for what, pack in packs.items()}


def _receivers(capture: Capture) -> list[tuple[int, float]] | None:
    """Per layer and head the position that receives most attention from later queries of the whole prompt, and how
    much to three decimals; None where positions were not captured."""
    if (found := received_of(capture)) is None:
        return None
    masses = found.strongest_mass.astype(float).round(3)
    return list(zip(found.strongest.ravel().tolist(), masses.ravel().tolist(), strict=True))


def _costs(path: Path, layers: list[int], heads: int) -> dict[str, list[float | None]]:
    """By strategy, and window where it has one, the estimated cost of replacing each head (KL divergence, nats per
    token), by layer and head; None for a head that `path`, a table of head costs, does not have."""
    table = read_tables([path])
    table["name"] = table["strategy"] + table["window"].map("_{:.0f}".format, na_action="ignore").fillna("")
    costs = table.pivot(index=["layer", "head"], columns="name", values="cost")
    costs = costs.reindex([(layer, head) for layer in layers for head in range(heads)])
    return {name: [None if np.isnan(cost) else cost for cost in of] for name, of in costs.items()}


def _plan(path: Path, layers: list[int], heads: int) -> dict[str, object]:
    """A plan's file for the page: `policy`, its name; `strategy`; `cells`, the heads that it names as row * heads +
    head; `firstLayer`, the threshold of one that decides by the first layer's scores, or None."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    chosen = plan.get("heads", {})
    cells = [row * heads + head for row, layer in enumerate(layers) for head in chosen.get(str(layer), [])]
    first_layer = plan.get("first_layer_threshold")
    return {"policy": path.stem, "strategy": plan["strategy"], "cells": cells, "firstLayer": first_layer}
