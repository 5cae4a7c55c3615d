"""Definitions, rules and limits."""

from sinkstudy.findings import verdicts as rules
from sinkstudy.findings.inputs import Tables


def section(t: Tables) -> str:
    return "\n\n".join(
        [
            "## Methods and limits",
            "Sink score: attention mass on the first token, averaged over queries. Null: that of uniform causal "
            "attention, H_n / n. Excess: (score - null) / (1 - null). Intervals: 95% percentile bootstrap over "
            "prompts. p: one-sided permutation of head labels within later layers, exact for a single prompt.",
            f"Rules of the conclusions. Sinks: in at least half of the prompts of {rules.MIN_TOKENS} tokens or more. "
            f"Length effect: mean excess changes by {rules.SMALL_EXCESS_CHANGE:g} or more. Hypothesis: correlation "
            f"of at least {100 * rules.HOLDS_AT:.0f}%, p below {rules.SIGNIFICANT:g}, interval above the base rate. "
            f"Score of uniform attention: mean score within {rules.NEAR_NULL:g} of it at every length. Weakening: the "
            "interval of the fall lies above 0. Simulator rejected: error above chance at "
            f"p < {rules.SIGNIFICANT:g} and above {100 * rules.GOOD_FIT:g} percentage points per layer. "
            f"Worth optimizing: speedup of {rules.WORTHWHILE_SPEEDUP:g} or more over SDPA at KL at most "
            f"{rules.HARMLESS_KL:g} and top-1 agreement at least {rules.HARMLESS_AGREEMENT:g}.",
            "The reference model is small and trained on a synthetic task; its numbers say how sinks behave, not how "
            "large models do. Timings are of this machine.",
        ]
    )
