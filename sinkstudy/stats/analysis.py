"""The statistics of one model from what its captures were reduced to, in two halves that jobs share."""

from collections.abc import Iterable

import pandas as pd

from sinkstudy.stats.correlation import correlation_tables, layer_pair_table
from sinkstudy.stats.curves import curve_table, length_tables, weakening_table
from sinkstudy.stats.definitions import definition_table
from sinkstudy.stats.persistence import persistence_tables
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling

Tables = dict[str, pd.DataFrame | Iterable[pd.DataFrame]]  # A table that may be long comes in parts.
_INFORMATIVE_TOKENS = 10  # uniform attention scores 0.29 at this length and more at shorter ones


def first_layer_statistics(reduced: Reduced, model: str, lengths: list[int], resampling: Resampling) -> Tables:
    """Whether later layers follow the first: correlation (in parts), at each of `lengths`; curves and weakening, over
    every length."""
    curves = curve_table(reduced, model, resampling)
    return {
        "correlation": correlation_tables(reduced, model, lengths, resampling, curves),
        "curves": curves,
        "weakening": weakening_table(reduced, model, resampling),
    }


def head_statistics(
    reduced: Reduced, model: str, lengths: list[int], reported: list[int], resampling: Resampling
) -> Tables:
    """Which heads are sinks, and how many: lengths (in parts), layer_pairs, persistence, set_dependence, definitions.

    Definitions are tabulated at `lengths`, layer pairs and persistence at `reported` lengths (persistence without those
    so short that uniform attention itself scores high).
    """
    persistent = [n for n in reported if n >= _INFORMATIVE_TOKENS]
    shares, dependence = persistence_tables(reduced, model, persistent, resampling)
    return {
        "lengths": length_tables(reduced, model),
        "layer_pairs": layer_pair_table(reduced, model, reported, resampling),
        "persistence": shares,
        "set_dependence": dependence,
        "definitions": definition_table(reduced, model, lengths, resampling),
    }
