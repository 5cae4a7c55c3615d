"""Whether sinks come and go with the first token's activation, and whether the values that sink heads read are drained.

Activation: the norm of the first token's residual stream entering a layer over the median of the other tokens' (massive
activations, Sun et al., arXiv 2402.17762). Value drain: the same ratio for values (Guo et al., arXiv 2410.13835).
"""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, spearmanr

from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.resampling import Resampling, interval_ends, resamples
from sinkstudy.stats.scores import excess_score, null_score

SINK_EXCESS = 0.5  # a head whose mean excess score is at least this is called a sink head here, at any length
_BY_HEAD_OR_CHANNEL = ("activation_channel", "channel_value", "value_drain")
_COLUMNS = ["model", "quantity", "layer", "value", "low", "high", "count"]


class Mechanism:
    """Activations, drains and excess scores of whole prompts, of those of two tokens or more."""

    def __init__(self) -> None:
        self._prompts: dict[int, dict[str, object]] = {}  # by position among all captures

    def add(self, order: np.ndarray, prefixes: Prefixes) -> None:
        """See `scores.Statistic`."""
        # A copy, as a view would hold the scores at all lengths.
        whole = prefixes.at(prefixes.n_tokens).copy()
        for place, capture, score in zip(order, prefixes.members, whole, strict=True):
            if capture.n_tokens > 1:
                about = {name: getattr(capture, name) for name in ("set", "prompt", "n_tokens", "layers")}
                unknown = np.full(score.shape, np.nan)  # Another program's capture may hold nothing of it.
                found = {"activation": unknown[:, 0]} | dict.fromkeys(_BY_HEAD_OR_CHANNEL, unknown)
                found |= {name: one for name in found if (one := getattr(capture, name)) is not None}
                excess = excess_score(score, null_score(capture.n_tokens))
                self._prompts[int(place)] = about | found | {"sink_score": score, "excess_score": excess}

    def activation_tables(self, model: str) -> Iterator[pd.DataFrame]:
        """A part per prompt: a row per layer (empty `head`) with means over heads and the largest channel of the first
        token's residual, then a row per layer and head."""
        for _, prompt in sorted(self._prompts.items()):
            layers, (_, heads) = prompt["layers"], prompt["sink_score"].shape
            about = {"model": model} | {name: prompt[name] for name in ("set", "prompt", "n_tokens")}
            by_head = {name: prompt[name] for name in ("sink_score", "excess_score", "value_drain")}
            of_layer = {
                "activation": prompt["activation"],
                "channel": prompt["activation_channel"][:, 0],
                "channel_value": prompt["channel_value"][:, 0],
            }
            means = {name: values.mean(-1) for name, values in by_head.items()}
            rows = pd.DataFrame(about | {"layer": layers, "head": pd.NA} | of_layer | means)
            each = pd.DataFrame(
                about
                | {"layer": np.repeat(layers, heads), "head": np.tile(np.arange(heads), len(layers))}
                | {name: values.ravel() for name, values in by_head.items()}
            )
            columns = rows.columns
            yield pd.concat([rows.astype({"head": "Int64"}), each.astype({"head": "Int64"})])[columns]

    def table(self, model: str, resampling: Resampling) -> pd.DataFrame:
        """A row per quantity: its value, its 95% bootstrap interval over prompts, and `count`, what it is made of.

        With a `layer`: `activation`, `excess_score` and `value_drain`, means over prompts (and heads). Without:
        `activation_correlation`, Spearman's over layers, of activation and excess score, and `activation_p_value`, that
        layers picked at random give as much (one-sided, layers taken as independent); `drain_correlation`, Spearman's
        over heads, of value drain and excess score; `sink_head_drain` and `other_head_drain`, medians over
        heads whose excess score is at least SINK_EXCESS, or below it; `highest_excess` of any head. All of means over
        prompts. Intervals are NaN where fewer than two prompts count.
        """
        prompts = [prompt for _, prompt in sorted(self._prompts.items())]
        if not prompts:
            return pd.DataFrame(columns=_COLUMNS)
        activation = np.stack([p["activation"] for p in prompts]).astype(float)  # (prompt, layer)
        drain = np.stack([p["value_drain"] for p in prompts]).astype(float)  # (prompt, layer, head)
        excess = np.stack([p["excess_score"] for p in prompts])
        n, layers, heads = excess.shape
        # The first row of weights takes every prompt once: the value itself. The others are bootstrap draws.
        draws = [np.ones((1, n)), *(resamples(n, resampling, width=layers * heads) if n > 1 else ())]
        weights = np.concatenate(draws) / n
        activation = weights @ activation  # (draw, layer)
        drain, excess = (weights @ values.reshape(n, -1) for values in (drain, excess))  # (draw, layer and head)
        is_sink = excess[0] >= SINK_EXCESS
        by_layer = {
            "activation": activation,
            "excess_score": excess.reshape(-1, layers, heads).mean(-1),
            "value_drain": drain.reshape(-1, layers, heads).mean(-1),
        }
        correlation, chance = _spearman(activation, by_layer["excess_score"])
        of_all = {
            "activation_correlation": (correlation, layers),
            "drain_correlation": (_spearman(drain, excess)[0], layers * heads),
            "sink_head_drain": (_median(drain[:, is_sink]), is_sink.sum()),
            "other_head_drain": (_median(drain[:, ~is_sink]), (~is_sink).sum()),
            "highest_excess": (excess.max(-1), layers * heads),
        }
        rows = [(name, np.nan, *_ends(values), count) for name, (values, count) in of_all.items()]
        rows.append(("activation_p_value", np.nan, chance, np.nan, np.nan, layers))
        for name, values in by_layer.items():
            rows += [(name, layer, *_ends(values[:, row]), n) for row, layer in enumerate(prompts[0]["layers"])]
        return pd.DataFrame([(model, *row) for row in rows], columns=_COLUMNS).astype({"layer": "Int64"})


def _spearman(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float]:
    """Of each row, (draw,), and the p-value of the first; NaN where a side is constant, undefined or of one number."""
    if first.shape[-1] < 2:
        return np.full(len(first), np.nan), np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        found = [spearmanr(*pair, alternative="greater") for pair in zip(first, second, strict=True)]
    return np.array([one.statistic for one in found]), float(found[0].pvalue)


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=-1) if values.shape[-1] else np.full(len(values), np.nan)


def _ends(draws: np.ndarray) -> tuple[float, float, float]:
    """The value in the first place, and the ends of its interval from the rest."""
    return float(draws[0]), *interval_ends(draws[1:])
