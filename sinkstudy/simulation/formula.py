"""Simulated sink matrices by the formula of the original study. Nothing in here was measured on a model.

Sink probability of a head = layer base x head tendency x length factor, with the base falling linearly from 0.9 in
the first layer to 0.2 in the last, a tendency per layer and head drawn from Beta(2, 3), and the factor
max(0.2, 1 - 0.03 n) for a prompt of n tokens.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from sinkstudy.stats.correlation import correlate
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store import write_file

_TENDENCY = (2, 3)  # of the Beta distribution


@dataclass(frozen=True)
class SimulatedSinks:
    """Simulated matrices, each (layer, head), for one prompt length.

    `probability` of a sink, `is_sink`: one draw with it, `score`: at or above the threshold where `is_sink`. The
    formula does not define scores; these are placeholders, uniform on either side of the threshold.
    """

    n_tokens: int
    probability: np.ndarray
    is_sink: np.ndarray
    score: np.ndarray


def simulate(layers: int, heads: int, lengths: list[int], seed: int, threshold: float) -> list[SimulatedSinks]:
    """One simulated model at several prompt lengths.

    All lengths share a head's tendency and its random draws, so a longer prompt only ever loses sinks.
    """
    rng = np.random.default_rng(seed)
    tendency = rng.beta(*_TENDENCY, size=(layers, heads))
    sink_draw = rng.random((layers, heads))
    score_draw = rng.random((layers, heads))
    simulated = []
    for n in lengths:
        probability = _base(layers) * tendency * _length_factor(n)
        is_sink = sink_draw < probability
        score = np.where(is_sink, threshold + (1 - threshold) * score_draw, threshold * score_draw)
        simulated.append(SimulatedSinks(n, probability, is_sink, score))
    return simulated


def expected_probability(layers: int, heads: int, n: int) -> np.ndarray:
    """The formula's sink probability at `n` tokens before a head's tendency is drawn, (layer, head)."""
    a, b = _TENDENCY
    return np.broadcast_to(_base(layers) * a / (a + b) * _length_factor(n), (layers, heads))


def _base(layers: int) -> np.ndarray:
    return np.linspace(0.9, 0.2, layers)[:, None]  # (layer, 1)


def _length_factor(n: int) -> float:
    return max(0.2, 1 - 0.03 * n)


def summary_table(
    preset: str,
    simulated: list[SimulatedSinks],
    threshold: float,
    resampling: Resampling,
    fitted_to: str | None = None,
) -> pd.DataFrame:
    """One row per length: sink count and the first-to-later-layer statistics of the simulated decisions.

    `fitted_to`: the captured model that a calibrated preset was fitted to.
    """
    return pd.DataFrame(
        {
            "kind": "simulated",
            "preset": preset,
            "fitted_to": fitted_to,
            "n_tokens": one.n_tokens,
            "threshold": threshold,
            "simulated_layers": len(one.is_sink),
            "simulated_heads": one.is_sink.size,
            "simulated_sinks": int(one.is_sink.sum()),
            "simulated_sink_fraction": one.is_sink.mean(),
            "simulated_mean_score": one.score.mean(),
            **correlate(one.is_sink[None], resampling),
        }
        for one in simulated
    )


def write_simulation(path: Path, preset: str, simulated: list[SimulatedSinks], threshold: float) -> None:
    """Write the matrices as HDF5 datasets (length, layer, head), every name marked simulated."""
    with h5py.File.in_memory(libver=("v110", "v110")) as file:
        file.attrs.update({"simulated": True, "preset": preset, "threshold": threshold, "complete": True})
        file["simulated_n_tokens"] = np.array([one.n_tokens for one in simulated], dtype=np.int32)
        file["simulated_n_tokens"].make_scale("simulated_n_tokens")
        for name in ("probability", "score", "is_sink"):
            dataset = file.create_dataset(f"simulated_{name}", data=np.stack([getattr(one, name) for one in simulated]))
            for axis, label in zip(dataset.dims, ("simulated_n_tokens", "layer", "head"), strict=True):
                axis.label = label
            dataset.dims[0].attach_scale(file["simulated_n_tokens"])
        file.flush()
        write_file(path, file.id.get_file_image())


def read_simulation(path: Path) -> list[SimulatedSinks]:
    """What `write_simulation` wrote."""
    with h5py.File(path, "r") as file:
        arrays = [file[f"simulated_{name}"][()] for name in ("n_tokens", "probability", "is_sink", "score")]
    return [SimulatedSinks(int(n), *matrices) for n, *matrices in zip(*arrays, strict=True)]
