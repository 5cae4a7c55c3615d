"""Prediction errors of simulators on prompts they were not fitted to.

Prompts are assigned to two halves in turn. The calibrated simulator is fitted to one half and predicts the other, and
the other way round; the original formula, which has nothing to fit, predicts the same halves.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from sinkstudy.measures.captured import Capture
from sinkstudy.simulation.calibration import Calibrator
from sinkstudy.simulation.formula import expected_probability
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, draws, ratio, ratio_intervals
from sinkstudy.stats.scores import scored

_COLUMNS = (
    "model simulator held_out_half threshold n_tokens quantity layer prompts predicted measured ci_low ci_high error"
)
_ERROR_COLUMNS = (
    "model simulator threshold cells layer_error sink_fraction_error correlation_error chance_error p_value"
)


def heldout_tables(
    captures: Iterable[Capture], model: str, thresholds: list[float], lengths: list[int], resampling: Resampling
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions beside what was measured, per simulator, half, threshold, length and quantity; and their errors.

    Quantities: `layer` (sink fraction of one layer), `sink_fraction` (of all heads), `correlation` (first layer to
    later ones). Intervals are of what was measured, bootstrapped over the prompts of the half. Both tables are empty
    where a half has no prompt of two tokens.
    """
    calibrators, counts = (Calibrator(), Calibrator()), {}
    for order, prefixes in scored(captures):
        layers, heads = prefixes.scores.shape[1:3]
        if prefixes.n_tokens == 1:
            continue
        counts |= zip(order.tolist(), _counts(prefixes, thresholds, lengths), strict=True)
        for i, calibrator in enumerate(calibrators):
            own = [prefixes.members[place] for place in np.flatnonzero(order % 2 == i)]
            if own:
                calibrator.add(Prefixes(own))
    found = [[counts[place] for place in sorted(counts) if place % 2 == i] for i in range(2)]
    if not all(found):
        return pd.DataFrame(columns=_COLUMNS.split()), pd.DataFrame(columns=_ERROR_COLUMNS.split())
    # Parts and wholes of each half, (2, prompt, cell); a cell is a threshold, a length and a quantity.
    halves = [np.stack(half, axis=1).reshape(2, len(half), -1).astype(float) for half in found]
    cells = pd.MultiIndex.from_product([thresholds, lengths, range(layers + 2)], names=["threshold", "n_tokens", "at"])
    formula = np.stack([[_quantities(expected_probability(layers, heads, n)) for n in lengths]] * len(thresholds))
    tables = []
    for i, (part, whole) in enumerate(halves):
        fitted = calibrators[1 - i].fitted()
        calibrated = np.array([[_quantities(fitted.probability(n, t)) for n in lengths] for t in thresholds])
        low, high = ratio_intervals(part, whole, resampling)
        measured = ratio(part.sum(0), whole.sum(0))
        for simulator, predicted in (("formula", formula), ("calibrated", calibrated)):
            columns = {"simulator": simulator, "held_out_half": i, "prompts": (whole > 0).sum(0)}
            columns |= {"predicted": predicted.ravel(), "measured": measured, "ci_low": low, "ci_high": high}
            tables.append(pd.DataFrame(columns, index=cells).reset_index())
    table = pd.concat(tables, ignore_index=True).assign(model=model)
    at = table.pop("at")
    table["layer"] = at.where(at < layers).astype("Int64")
    table["quantity"] = np.select([at < layers, at == layers], ["layer", "sink_fraction"], "correlation")
    table["error"] = table["predicted"] - table["measured"]
    table = table[table["error"].notna()]
    return table[_COLUMNS.split()], _error_table(table, halves, cells, layers, resampling)


def _counts(prefixes: Prefixes, thresholds: list[float], lengths: list[int]) -> np.ndarray:
    """What prompts of one length measure, (prompt, 2, threshold, length, quantity) int32: a quantity is the ratio of a
    part to its whole. Quantities: the sink fraction of every layer, that of all heads, and the correlation."""
    prompts, layers, heads, _ = prefixes.scores.shape
    reached = [i for i, length in enumerate(lengths) if length <= prefixes.n_tokens]
    at = prefixes.scores[..., [prefixes.place(lengths[i]) for i in reached]]  # (prompt, layer, head, length)
    is_sink = np.moveaxis(at, -1, 1)[:, None] >= np.reshape(thresholds, (-1, 1, 1, 1))
    per_layer = is_sink.sum(-1)  # (prompt, threshold, length, layer)
    both = (is_sink[..., :1, :] & is_sink[..., 1:, :]).sum((-2, -1))
    counts = np.zeros((prompts, 2, len(thresholds), len(lengths), layers + 2), np.int32)
    part, whole = counts[:, 0], counts[:, 1]
    part[:, :, reached] = np.concatenate([per_layer, per_layer.sum(-1, keepdims=True), both[..., None]], axis=-1)
    whole[:, :, reached, :layers] = heads
    whole[:, :, reached, layers] = layers * heads
    whole[:, :, reached, layers + 1] = (layers - 1) * per_layer[..., 0]
    return counts


def _error_table(
    table: pd.DataFrame, halves: list[np.ndarray], cells: pd.MultiIndex, layers: int, resampling: Resampling
) -> pd.DataFrame:
    """Mean absolute errors, and whether the per-layer error exceeds the chance difference between halves.

    Chance: both halves are resampled, and the difference of their changes is the error of a perfect fit.
    """
    changes = []
    for i, (part, whole) in enumerate(halves):
        seeded = replace(resampling, seed=resampling.seed + i)  # the halves are drawn independently
        drawn = draws(len(part), seeded).astype(float)
        changes.append(ratio(drawn @ part, drawn @ whole) - ratio(part.sum(0), whole.sum(0)))
    differ = np.abs(changes[0] - changes[1])  # (draw, cell)
    rows = []
    for (simulator, threshold), part in table.groupby(["simulator", "threshold"], sort=False):
        errors = part.assign(error=part["error"].abs()).groupby("quantity")["error"]
        of_layers = (cells.get_level_values("threshold") == threshold) & (cells.get_level_values("at") < layers)
        chance = np.nanmean(differ[:, of_layers], axis=1)
        error = errors.mean()
        p_value = (1 + (chance >= error["layer"]).sum()) / (1 + len(chance))
        means = error["layer"], error["sink_fraction"], error.get("correlation", np.nan)
        about = part["model"].iloc[0], simulator, threshold, errors.size()["layer"]
        rows.append((*about, *means, np.median(chance), p_value))
    return pd.DataFrame(rows, columns=_ERROR_COLUMNS.split())


def _quantities(probability: np.ndarray) -> np.ndarray:
    """What (layer, head) sink probabilities predict for independent decisions: per layer, over all, correlation."""
    first, later = probability[0], probability[1:]
    correlation = (first * later.mean(0)).sum() / first.sum() if len(later) and first.any() else np.nan
    return np.array([*probability.mean(1), probability.mean(), correlation])
