"""All statistics of one model from what its captures were reduced to."""

from collections.abc import Iterable

import pandas as pd

from sinkstudy.stats.correlation import correlation_tables
from sinkstudy.stats.curves import curve_table, length_tables, weakening_table
from sinkstudy.stats.definitions import definition_table
from sinkstudy.stats.layer_pairs import layer_pair_table
from sinkstudy.stats.persistence import persistence_tables
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.reduced import Reduced

_INFORMATIVE_TOKENS = 10  # uniform attention scores 0.29 at this length and more at shorter ones


def analyse(
    reduced: Reduced,
    model: str,
    correlation_lengths: list[int],
    reported_lengths: list[int],
    resampling: Resampling,
) -> dict[str, pd.DataFrame | Iterable[pd.DataFrame]]:
    """The tables by name: lengths and correlation (in parts), curves, weakening, layer_pairs, persistence,
    set_dependence and definitions.

    The correlation over all prompts and the definitions are tabulated at `correlation_lengths`, layer pairs and
    persistence at `reported_lengths` (persistence without those so short that uniform attention itself scores high).
    """
    curves = curve_table(reduced, model, resampling)
    persistent = [n for n in reported_lengths if n >= _INFORMATIVE_TOKENS]
    shares, dependence = persistence_tables(reduced, model, persistent, resampling)
    return {
        "lengths": length_tables(reduced, model),
        "correlation": correlation_tables(reduced, model, correlation_lengths, resampling, curves),
        "curves": curves,
        "weakening": weakening_table(reduced, model, resampling),
        "layer_pairs": layer_pair_table(reduced, model, reported_lengths, resampling),
        "persistence": shares,
        "set_dependence": dependence,
        "definitions": definition_table(reduced, model, correlation_lengths, resampling),
    }
