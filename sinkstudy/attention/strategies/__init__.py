"""What a replaced head computes instead of attention: one file per strategy, one contract.

A strategy is a function of a `ReplacedHeads` and returns their outputs, (batch, head, query, width), or something
that broadcasts to it.
"""

from sinkstudy.attention.strategies.first_value import first_value
from sinkstudy.attention.strategies.reuse import reuse

STRATEGIES = {"reuse": reuse, "first_value": first_value}

__all__ = ["STRATEGIES"]
