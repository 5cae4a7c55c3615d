"""Running a model with sink heads replaced by something cheaper, and measuring what that saves and costs.

This half of the library shares nothing with the measuring half but the plan file.
"""

from sinkstudy.attention.optimize import optimized
from sinkstudy.attention.plan import Plan

__all__ = ["Plan", "optimized"]
