"""What the findings are written from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sinkstudy.stats.positions import EPSILON
from sinkstudy.stats.profile import MIN_TOKENS, long_prompt_table
from sinkstudy.store.tables import LongTable, read_tables

PUBLISHED = Path(__file__).with_name("published.csv")  # figures of other studies, each with its source
_LONG = ("scores", "lengths", "sink_positions")
_OF_THE_STUDY = ("beside_simulated", "control", "comparison", "costs")  # These tables cover all models in one file.


@dataclass(frozen=True)
class Tables:
    """The study's tables by name, all models together, as read from the result files.

    Of those with many rows per prompt only what the findings need is held. `long_prompts` sums up the scores, see
    `profile`; `cut_prompts` has a row of the scores per prompt that was cut to its model's context; `lengths` has each
    prompt at 2 tokens and at its whole length; `sink_positions` has those of sinks in prompts of MIN_TOKENS tokens or
    more. A table that the study does not have is empty.

    `provenance`: per model, the attributes of its captures. `threshold`: the sink score from which a head is a sink.
    `controls`: the models with random weights. `figures`: names, without ending, of the figures the study draws.
    `long_as_csv`: whether tables with many rows per prompt are CSV, too, and not only folders of Parquet files.
    """

    tables: Mapping[str, pd.DataFrame]
    provenance: Mapping[str, Mapping[str, str]]
    threshold: float
    controls: frozenset[str] = frozenset()
    figures: frozenset[str] = frozenset()
    long_as_csv: bool = True

    @classmethod
    def read(cls, files: Mapping[str, Sequence[str | Path]], threshold: float, **about: object) -> "Tables":
        """`files`: those of each table by its name, folders of those with many rows per prompt. `about`: the other
        fields."""
        scores, lengths, sink_positions = (LongTable(files[name]) for name in _LONG)
        tables = {name: read_tables(paths) for name, paths in files.items() if name not in _LONG}
        tables |= {
            "long_prompts": long_prompt_table(scores, MIN_TOKENS),
            "cut_prompts": scores.only(_cut).drop_duplicates(["model", "prompt"]),
            "lengths": lengths.only(_first_and_last),
            "sink_positions": sink_positions.only(_sinks_of_long_prompts),
        }
        return cls(tables, threshold=threshold, **about)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(self["heads"]["model"]))

    @property
    def main(self) -> str:
        """The model that the findings open with: the first that is no control."""
        return next((model for model in self.models if model not in self.controls), self.models[0])

    def of(self, name: str, **where: object) -> pd.DataFrame:
        """The rows of a table in which each column has the value given; None stands for an empty cell."""
        table = self[name]
        for column, value in where.items() if len(table) else ():
            table = table[table[column].isna() if value is None else table[column] == value]
        return table

    def rows(self, name: str, **where: object) -> list[dict[str, object]]:
        """The same rows as mappings, each with the `file` it was read from."""
        return self.with_file(name, self.of(name, **where))

    def with_file(self, name: str, rows: pd.DataFrame) -> list[dict[str, object]]:
        """Rows that were chosen or computed from those of a table, as mappings with the `file` of the table."""
        return [row | {"file": self.file_of(name, row.get("model", ""))} for row in rows.to_dict("records")]

    def groups(self, name: str, *by: str, **where: object) -> Iterable[tuple[tuple, pd.DataFrame]]:
        """The rows of a table that agree in the columns `by`, with what they agree in, in the order of the table."""
        rows = self.of(name, **where)
        return rows.groupby(list(by), sort=False, dropna=False) if len(rows) else ()

    def file_of(self, name: str, model: object) -> str:
        """Where the rows of a model in a table were read from."""
        if name == "published":
            return "published.csv"
        if name in _OF_THE_STUDY:
            return f"results/{name}.csv"
        return f"results/{name}/{model}" + ("/" if name in _LONG and not self.long_as_csv else ".csv")


def _cut(scores: pd.DataFrame) -> pd.Series:
    """Which rows are of cut prompts, of one head in each layer."""
    return (scores["head"] == 0) & (scores["text_tokens"] > scores["n_tokens"])


def _sinks_of_long_prompts(rows: pd.DataFrame) -> pd.Series:
    return (rows["mean_attention"] >= EPSILON) & (rows["n_tokens"] >= MIN_TOKENS)


def _first_and_last(lengths: pd.DataFrame) -> pd.Series:
    """Which rows of a length table are at 2 tokens or at the whole length of their prompt."""
    n = lengths["n_tokens"]
    return (n == 2) | (n == n.groupby(lengths["prompt"]).transform("max"))
