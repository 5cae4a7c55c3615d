"""Whether sinks come and go with the first token's activation, and whether the values that sink heads read are drained.

Activation: the norm of the first token's residual stream entering a layer over the median of the other tokens' (massive
activations, Sun et al., arXiv 2402.17762). Value drain: the same ratio for values (Guo et al., arXiv 2410.13835).
"""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, spearmanr

from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling, drawn_sums, once_and_drawn, percentiles
from sinkstudy.stats.scores import excess_score, null_score, prompt_columns

SINK_EXCESS = 0.5  # a head whose mean excess score is at least this is called a sink head here, at any length
_OF_LAYER = {"activation": "activation", "activation_channel": "channel", "channel_value": "channel_value"}
_ABOUT = ["model", "set", "prompt", "n_tokens", "layer", "head"]
_OF_HEAD = ("sink_score", "excess_score", "value_drain")
_COLUMNS = ["model", "quantity", "layer", "value", "low", "high", "count"]


def activation_tables(reduced: Reduced, model: str) -> Iterator[pd.DataFrame]:
    """Of each prompt of two tokens or more, in parts of bounded size: a row per layer (empty `head`) with means over
    heads and the largest channel of the first token's residual, then a row per layer and head."""
    if not len(reduced.reaching(2)):
        yield pd.DataFrame(columns=[*_ABOUT, *_OF_LAYER.values(), *_OF_HEAD])  # so that an empty table has a header
        return
    layers, heads = reduced.shape
    each = layers + layers * heads
    for block in reduced.blocks(reduced.reaching(2), rows=each):
        values, unknown = _values(reduced, block), np.full((len(block), layers * heads), np.nan, np.float32)
        columns = prompt_columns(reduced, model, block, each) | {
            "n_tokens": reduced.n_tokens[block].repeat(each),
            "layer": np.tile(np.concatenate([reduced.layers, reduced.layers.repeat(heads)]), len(block)),
            "head": pd.array(([pd.NA] * layers + list(range(heads)) * layers) * len(block), dtype="Int64"),
        }
        for name, column in _OF_LAYER.items():
            columns[column] = np.hstack([reduced.rows(name, block), unknown]).ravel()
        for name in _OF_HEAD:
            means, of_heads = values[name].mean(-1), values[name].reshape(unknown.shape)
            columns[name] = np.hstack([means, of_heads]).ravel()
        yield pd.DataFrame(columns)


def mechanism_table(reduced: Reduced, model: str, resampling: Resampling) -> pd.DataFrame:
    """A row per quantity: its value, its 95% bootstrap interval over prompts of two tokens or more, and `count`, what
    it is made of.

    With a `layer`: `activation`, `excess_score` and `value_drain`, means over prompts (and heads). Without:
    `activation_correlation`, Spearman's over layers, of activation and excess score, and `activation_p_value`, that
    layers picked at random give as much (one-sided, layers taken as independent); `drain_correlation`, Spearman's
    over heads, of value drain and excess score; `sink_head_drain` and `other_head_drain`, medians over
    heads whose excess score is at least SINK_EXCESS, or below it; `highest_excess` of any head. All of means over
    prompts. Intervals are NaN where fewer than two prompts count.
    """
    members = reduced.reaching(2)
    n = len(members)
    if not n:
        return pd.DataFrame(columns=_COLUMNS)
    layers, heads = reduced.shape

    def blocks() -> Iterator[list[np.ndarray]]:
        for block in reduced.blocks(members):
            values = _values(reduced, block)
            names = ("activation", "value_drain", "excess_score")
            yield [values[name].reshape(len(block), -1).astype(float) for name in names]

    # The first row holds the value itself, the others bootstrap draws: (draw, layer), (draw, layer and head) twice.
    activation, drain, excess = drawn_sums(blocks, once_and_drawn(n, resampling) / n)
    is_sink = excess[0] >= SINK_EXCESS
    by_layer = {
        "activation": activation,
        "excess_score": excess.reshape(-1, layers, heads).mean(-1),
        "value_drain": drain.reshape(-1, layers, heads).mean(-1),
    }
    correlation, p_value = _spearman(activation, by_layer["excess_score"])
    rows = [
        ("activation_correlation", np.nan, correlation, layers),
        ("drain_correlation", np.nan, _spearman(drain, excess)[0], layers * heads),
        ("sink_head_drain", np.nan, _median(drain[:, is_sink]), is_sink.sum()),
        ("other_head_drain", np.nan, _median(drain[:, ~is_sink]), (~is_sink).sum()),
        ("highest_excess", np.nan, excess.max(-1), layers * heads),
        ("activation_p_value", np.nan, p_value, layers),
    ]
    for name, values in by_layer.items():
        rows += [(name, layer, of_layer, n) for layer, of_layer in zip(reduced.layers, values.T, strict=True)]
    quantity, layer, values, count = zip(*rows, strict=True)
    value, *others = np.stack(values, axis=1)
    low, high = percentiles(np.array(others)) if n > 1 else np.full((2, len(rows)), np.nan)
    columns = {"quantity": quantity, "layer": layer, "value": value, "low": low, "high": high, "count": count}
    return pd.DataFrame({"model": model} | columns).astype({"layer": "Int64"})


def _values(reduced: Reduced, block: np.ndarray) -> dict[str, np.ndarray]:
    """Of whole prompts, (prompt, layer) activation and (prompt, layer, head) each of the others."""
    found = {name: reduced.rows(name, block) for name in ("activation", "value_drain", "sink_score")}
    null = null_score(reduced.n_tokens[block])[:, None, None]
    return found | {"excess_score": excess_score(found["sink_score"], null)}


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each row, and the p-value of the first row alone, (2, draw); NaN where a side is constant, undefined or of one
    number."""
    found = np.full((2, len(first)), np.nan)
    if first.shape[-1] > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            each = [spearmanr(*pair, alternative="greater") for pair in zip(first, second, strict=True)]
        found[0], found[1, 0] = [one.statistic for one in each], each[0].pvalue
    return found


def _median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=-1) if values.shape[-1] else np.full(len(values), np.nan)
