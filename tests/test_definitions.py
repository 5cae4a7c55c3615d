"""The share of sinks under each published definition, against a loop over whole attention maps."""

from dataclasses import replace

import numpy as np
import pytest
from planted_captures import capture_of

from sinkstudy.stats.definitions import DEFINITIONS, definition_table
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling

LENGTHS = [1, 2, 5, 130]


def by_loop(name: str, mass: np.ndarray, n: int, threshold: float) -> float:
    """In the words of the publications, head by head, from the first column `mass` (layer, head, query)."""
    sinks = []
    for head in mass.reshape(-1, mass.shape[-1]):
        head = list(head[:n])
        if name in ("study", "gu"):
            mean = sum(head) / n
            sinks.append(mean >= threshold if name == "study" else mean > threshold)
        elif name == "without_first_query":
            sinks.append(sum(head[1:]) / (n - 1) > threshold)
        elif name.startswith("first_"):
            first = head[: int(name.split("_")[1])]
            sinks.append(sum(first) / len(first) >= threshold)
        else:
            sinks += [value > threshold for value in (head if name == "per_query" else head[1:])]
    return sum(sinks) / len(sinks)


def planted(seed: int, n: int) -> np.ndarray:
    """Masses in 64ths, whose means are often the thresholds themselves: > and >= differ."""
    mass = np.random.default_rng(seed).integers(16, 65, (2, 3, n)) / 64
    mass[0, 0], mass[..., 0] = 0.5, 1.0
    mass[0, 0, :2] = [1.0, 0.0]
    return mass.astype(np.float32)


@pytest.fixture(scope="module")
def table():
    captures = [capture_of(planted(seed, n), f"p{seed}", "ab"[seed % 2]) for seed, n in enumerate((2, 7, 140, 131))]
    return definition_table(reduced(captures, Needs([0.5, 0.75], LENGTHS)), "m", LENGTHS, Resampling(50, 10, 0))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_definition_is_what_its_words_say(table, name):
    rows = table[(table["definition"] == name) & (table["set"] == "all")]
    assert set(zip(rows["n_tokens"], rows["prompts"], strict=True)) == {(2, 4), (5, 3), (130, 2)}
    for row in rows.itertuples():
        masses = [planted(seed, n) for seed, n in enumerate((2, 7, 140, 131)) if n >= row.n_tokens]
        expected = np.mean([by_loop(name, mass.astype(float), row.n_tokens, row.threshold) for mass in masses])
        assert row.share == pytest.approx(expected, abs=1e-12)
        assert row.share_low <= row.share <= row.share_high


def test_definitions_part_where_a_score_is_the_threshold_and_where_the_first_query_is_all(table):
    at = table[(table["set"] == "all") & (table["threshold"] == 0.5) & (table["n_tokens"] == 2)]
    share = at.set_index("definition")["share"]
    assert share["study"] > share["gu"] > share["without_first_query"]
    assert share["first_2_queries"] == share["first_128_queries"] == share["study"]


def test_rows_that_do_not_sum_to_one_are_measured_by_their_sum():
    mass, row_sum = np.full((1, 1, 3), 0.3, np.float32), np.full((1, 1, 3), 0.5, np.float32)
    made = reduced([replace(capture_of(mass), row_sum=row_sum)], Needs([0.5], [3]))
    assert (definition_table(made, "m", [3], Resampling(50, 10, 0))["share"] == 1).all()
