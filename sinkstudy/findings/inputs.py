"""What the findings are written from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sinkstudy.findings.verdicts import MIN_TOKENS
from sinkstudy.stats.profile import long_prompt_table, position_table
from sinkstudy.store.tables import LongTable, read_tables


@dataclass(frozen=True)
class Tables:
    """The study's tables, all models together, as read from the result files.

    Of the tables with many rows per prompt only what the findings need is held. `long_prompts` and `positions` sum up
    the scores, see `profile`; `lengths` has each prompt at 2 tokens and at its whole length; `correlation` only rows
    over all prompts. `provenance`: per model, the attributes of its captures. `threshold`: the sink score from which
    a head is a sink.
    """

    long_prompts: pd.DataFrame
    positions: pd.DataFrame
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

    @classmethod
    def read(
        cls, files: Mapping[str, Sequence[str | Path]], provenance: dict[str, dict[str, str]], threshold: float
    ) -> "Tables":
        """`files`: those of every table, and the score tables as `scores`."""
        long = {name: LongTable(files[name]) for name in ("scores", "lengths", "correlation")}
        return cls(
            **{name: read_tables(paths) for name, paths in files.items() if name not in long},
            long_prompts=long_prompt_table(long["scores"], MIN_TOKENS),
            positions=position_table(long["scores"], threshold),
            lengths=long["lengths"].only(_first_and_last),
            correlation=long["correlation"].only(lambda rows: rows["prompt"] == "all"),
            provenance=provenance,
            threshold=threshold,
        )

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


def _first_and_last(lengths: pd.DataFrame) -> pd.Series:
    """Which rows of a length table are at 2 tokens or at the whole length of their prompt."""
    n = lengths["n_tokens"]
    return (n == 2) | (n == n.groupby(lengths["prompt"]).transform("max"))
