"""All statistics of one model in one pass over its captures, a bounded number of them in memory at a time."""

from collections.abc import Iterable

import pandas as pd

from sinkstudy.stats.correlation import Correlation
from sinkstudy.stats.curves import Curves
from sinkstudy.stats.definitions import DefinitionShares
from sinkstudy.stats.layer_pairs import LayerPairs
from sinkstudy.stats.persistence import Persistence
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import add_all
from sinkstudy.store import Capture

_INFORMATIVE_TOKENS = 10  # uniform attention scores 0.29 at this length and more at shorter ones


def analyse(
    captures: Iterable[Capture],
    model: str,
    thresholds: list[float],
    correlation_lengths: list[int],
    reported_lengths: list[int],
    resampling: Resampling,
) -> dict[str, pd.DataFrame | Iterable[pd.DataFrame]]:
    """The tables by name: lengths (in parts), correlation, curves, weakening, layer_pairs, persistence,
    set_dependence and definitions.

    The correlation over all prompts and the definitions are tabulated at `correlation_lengths`, layer pairs and
    persistence at `reported_lengths` (persistence without those so short that uniform attention itself scores high).
    """
    correlation, curves = Correlation(thresholds, correlation_lengths), Curves(thresholds)
    pairs = LayerPairs(thresholds, reported_lengths)
    persistence = Persistence(thresholds, [n for n in reported_lengths if n >= _INFORMATIVE_TOKENS])
    definitions = DefinitionShares(thresholds, correlation_lengths)
    add_all(captures, correlation, curves, pairs, persistence, definitions)
    curve_table = curves.table(model, resampling)
    shares, dependence = persistence.tables(model, resampling)
    return {
        "lengths": curves.prompt_tables(model),
        "correlation": correlation.table(model, resampling, curve_table),
        "curves": curve_table,
        "weakening": curves.weakening_table(model, resampling),
        "layer_pairs": pairs.table(model, resampling),
        "persistence": shares,
        "set_dependence": dependence,
        "definitions": definitions.table(model, resampling),
    }
