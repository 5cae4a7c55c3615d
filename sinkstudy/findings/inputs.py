"""What the findings are written from."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Tables:
    """The study's tables, all models together, as read from the result files.

    `provenance`: per model, the attributes of its captures. `threshold`: the sink score from which a head is a sink.
    """

    scores: pd.DataFrame
    heads: pd.DataFrame
    lengths: pd.DataFrame
    correlation: pd.DataFrame
    curves: pd.DataFrame
    weakening: pd.DataFrame
    layer_pairs: pd.DataFrame
    persistence: pd.DataFrame
    domains: pd.DataFrame
    control: pd.DataFrame
    comparison: pd.DataFrame
    simulation: pd.DataFrame
    heldout_errors: pd.DataFrame
    published: pd.DataFrame
    benchmark: pd.DataFrame
    quality: pd.DataFrame
    answers: pd.DataFrame
    verification: pd.DataFrame
    costs: pd.DataFrame
    provenance: dict[str, dict[str, str]]
    threshold: float

    def of(self, name: str, model: str) -> pd.DataFrame:
        """The rows of one model in the table called `name`."""
        table = getattr(self, name)
        return table[table["model"] == model]

    def curve(self, model: str, set_name: str = "all") -> pd.DataFrame:
        """The curve over all lengths of a set of prompts, at the threshold."""
        rows = self.of("curves", model)
        return rows[(rows["set"] == set_name) & (rows["threshold"] == self.threshold)]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(self.heads["model"]))

    def overall(self, model: str, set_name: str = "all", threshold: float | None = None) -> pd.Series:
        """The correlation row over all prompts of a set at their own lengths."""
        rows = self.of("correlation", model)
        level = self.threshold if threshold is None else threshold
        rows = rows[(rows["set"] == set_name) & (rows["prompt"] == "all") & rows["n_tokens"].isna()]
        return rows[rows["threshold"] == level].iloc[0]
