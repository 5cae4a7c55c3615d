"""Prediction errors of simulators on prompts they were not fitted to.

Prompts are assigned to two halves in turn. The calibrated simulator is fitted to one half and predicts the other, and
the other way round; the original formula, which has nothing to fit, predicts the same halves.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sinkstudy.simulation.calibration import Calibrator
from sinkstudy.simulation.formula import expected_probability
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, ratio_intervals, resamples
from sinkstudy.stats.scores import scored
from sinkstudy.store import Capture

_COLUMNS = (
    "model simulator held_out_half threshold n_tokens quantity layer prompts predicted measured ci_low ci_high error"
)
_ERROR_COLUMNS = (
    "model simulator threshold cells layer_error sink_fraction_error correlation_error chance_error p_value"
)


@dataclass
class _Half:
    """Every second prompt: what is fitted to them, and what they measure, as counts per prompt.

    `part` and `whole` are (threshold, length, quantity) each; a measured quantity is the ratio of their sums. The
    quantities are the sink fraction of every layer, that of all heads, and the first-to-later-layer correlation.
    """

    calibrator: Calibrator = field(default_factory=Calibrator)
    part: list[np.ndarray] = field(default_factory=list)
    whole: list[np.ndarray] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # positions in the study, on which draws depend

    def add(self, order: np.ndarray, prefixes: Prefixes, thresholds: list[float], lengths: list[int]) -> None:
        """Captures of one length, with their positions in the study."""
        self.order += order.tolist()
        self.calibrator.add(prefixes)
        prompts, layers, heads, _ = prefixes.scores.shape
        reached = [i for i, length in enumerate(lengths) if length <= prefixes.n_tokens]
        at = prefixes.scores[..., [prefixes.place(lengths[i]) for i in reached]]  # (prompt, layer, head, length)
        is_sink = np.moveaxis(at, -1, 1)[:, None] >= np.reshape(thresholds, (-1, 1, 1, 1))
        per_layer = is_sink.sum(-1)  # (prompt, threshold, length, layer)
        both = (is_sink[..., :1, :] & is_sink[..., 1:, :]).sum((-2, -1))
        part, whole = np.zeros((2, prompts, len(thresholds), len(lengths), layers + 2), np.int32)
        part[:, :, reached] = np.concatenate([per_layer, per_layer.sum(-1, keepdims=True), both[..., None]], axis=-1)
        whole[:, :, reached, :layers] = heads
        whole[:, :, reached, layers] = layers * heads
        whole[:, :, reached, layers + 1] = (layers - 1) * per_layer[..., 0]
        self.part += list(part)
        self.whole += list(whole)

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """(prompt, cell) of both, a cell being a threshold, a length and a quantity."""
        in_order = np.argsort(self.order)
        counts = (np.stack(of_prompts)[in_order] for of_prompts in (self.part, self.whole))
        return tuple(one.reshape(len(in_order), -1).astype(float) for one in counts)


def heldout_tables(
    captures: Iterable[Capture], model: str, thresholds: list[float], lengths: list[int], resampling: Resampling
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions beside what was measured, per simulator, half, threshold, length and quantity; and their errors.

    Quantities: `layer` (sink fraction of one layer), `sink_fraction` (of all heads), `correlation` (first layer to
    later ones). Intervals are of what was measured, bootstrapped over the prompts of the half. Both tables are empty
    where a half has no prompt of two tokens.
    """
    halves = (_Half(), _Half())
    for order, prefixes in scored(captures):
        layers, heads = prefixes.scores.shape[1:3]
        for i, half in enumerate(halves):
            own = np.flatnonzero(order % 2 == i)
            if len(own) and prefixes.n_tokens > 1:
                half.add(order[own], Prefixes([prefixes.members[place] for place in own]), thresholds, lengths)
    if not all(half.part for half in halves):
        return pd.DataFrame(columns=_COLUMNS.split()), pd.DataFrame(columns=_ERROR_COLUMNS.split())
    cells = pd.MultiIndex.from_product([thresholds, lengths, range(layers + 2)], names=["threshold", "n_tokens", "at"])
    formula = np.stack([[_quantities(expected_probability(layers, heads, n)) for n in lengths]] * len(thresholds))
    tables = []
    for i, held_out in enumerate(halves):
        fitted = halves[1 - i].calibrator.fitted()
        calibrated = np.array([[_quantities(fitted.probability(n, t)) for n in lengths] for t in thresholds])
        part, whole = held_out.sums()
        low, high = ratio_intervals(part, whole, resampling)
        measured = _ratio(part.sum(0), whole.sum(0))
        for simulator, predicted in (("formula", formula), ("calibrated", calibrated)):
            columns = {"simulator": simulator, "held_out_half": i, "prompts": (whole > 0).sum(0)}
            columns |= {"predicted": predicted.ravel(), "measured": measured, "ci_low": low, "ci_high": high}
            tables.append(pd.DataFrame(columns, index=cells).reset_index())
    table = pd.concat(tables, ignore_index=True)
    table["layer"] = table["at"].where(table["at"] < layers).astype("Int64")
    conditions = [table["at"] < layers, table["at"] == layers]
    table["quantity"] = np.select(conditions, ["layer", "sink_fraction"], "correlation")
    table["error"] = table["predicted"] - table["measured"]
    table["model"] = model
    table = table[table["error"].notna()]
    return table[_COLUMNS.split()], _error_table(table, halves, cells, layers, resampling)


def _error_table(
    table: pd.DataFrame, halves: tuple[_Half, _Half], cells: pd.MultiIndex, layers: int, resampling: Resampling
) -> pd.DataFrame:
    """Mean absolute errors, and whether the per-layer error exceeds the chance difference between halves.

    Chance: both halves are resampled, and the difference of their changes is the error of a perfect fit.
    """
    changes = []
    for i, half in enumerate(halves):
        part, whole = half.sums()
        seeded = replace(resampling, seed=resampling.seed + i)  # the halves are drawn independently
        draws = resamples(len(part), seeded, width=part.shape[1])
        resampled = np.concatenate([_ratio(draw @ part, draw @ whole) for draw in draws])
        changes.append(resampled - _ratio(part.sum(0), whole.sum(0)))
    differ = np.abs(changes[0] - changes[1])  # (draw, cell)
    rows = []
    for (simulator, threshold), part in table.groupby(["simulator", "threshold"], sort=False):
        errors = part.assign(error=part["error"].abs()).groupby("quantity")["error"]
        of_layers = (cells.get_level_values("threshold") == threshold) & (cells.get_level_values("at") < layers)
        chance = np.nanmean(differ[:, of_layers], axis=1)
        error = errors.mean()["layer"]
        rows.append(
            {
                "model": part["model"].iloc[0],
                "simulator": simulator,
                "threshold": threshold,
                "cells": errors.size()["layer"],
                "layer_error": error,
                "sink_fraction_error": errors.mean()["sink_fraction"],
                "correlation_error": errors.mean().get("correlation", np.nan),
                "chance_error": np.median(chance),
                "p_value": (1 + (chance >= error).sum()) / (1 + len(chance)),
            }
        )
    return pd.DataFrame(rows)


def _quantities(probability: np.ndarray) -> np.ndarray:
    """What (layer, head) sink probabilities predict for independent decisions: per layer, over all, correlation."""
    first, later = probability[0], probability[1:]
    with np.errstate(invalid="ignore"):
        correlation = (first * later.mean(0)).sum() / first.sum() if len(later) else np.nan
    return np.array([*probability.mean(1), probability.mean(), correlation])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
