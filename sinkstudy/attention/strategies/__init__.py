"""What a replaced head computes instead of attention: one file per strategy, one contract."""

from sinkstudy.attention.strategies.contract import Strategy
from sinkstudy.attention.strategies.first_value import FIRST_VALUE
from sinkstudy.attention.strategies.first_value_mean import FIRST_VALUE_MEAN
from sinkstudy.attention.strategies.reuse import REUSE
from sinkstudy.attention.strategies.sink_window import SINK_WINDOW

STRATEGIES: dict[str, Strategy] = {
    "reuse": REUSE,
    "first_value": FIRST_VALUE,
    "first_value_mean": FIRST_VALUE_MEAN,
    "sink_window": SINK_WINDOW,
}
