"""Captures that keep lengths: every table follows as from every query, and what was not kept is asked for by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from planted_captures import capture_of
from toy import toy

from sinkstudy.capture.recording import record
from sinkstudy.capture.verification import verify
from sinkstudy.errors import StudyError
from sinkstudy.explorer.study import read_study
from sinkstudy.measures.captured import Keep
from sinkstudy.measures.kept import kept
from sinkstudy.prompts import read_prompts
from sinkstudy.simulation.heldout import heldout_tables
from sinkstudy.stats.analysis import first_layer_statistics, head_statistics
from sinkstudy.stats.bos_arms import arm_rows
from sinkstudy.stats.mechanism import activation_tables, mechanism_table
from sinkstudy.stats.positions import position_tables, sink_position_tables
from sinkstudy.stats.predictors import predictor_tables
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.profile import head_curves
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import score_tables
from sinkstudy.store import open_capture, read_captures
from sinkstudy.workflow.expected import Expected

RESAMPLING = Resampling(50, 20, 0)
THRESHOLDS, LENGTHS = [0.3, 0.8, 0.9], [2, 10, 24, 64]


@pytest.fixture(scope="module")
def captured(tmp_path_factory) -> Callable[[str], Path]:
    """The quick study's prompts on the toy, with every query or with lengths."""
    folder, loaded = tmp_path_factory.mktemp("kept"), toy()
    for name, keep in {"queries": None, "lengths": Keep(LENGTHS, THRESHOLDS)}.items():
        record(folder / f"{name}.h5", "m", loaded, read_prompts(Path("config/quick_prompts.tsv")), 24, 2048, keep=keep)
    return lambda name: folder / f"{name}.h5"


def tables(path: Path) -> dict[str, pd.DataFrame]:
    """Every table that is made of captures."""
    read = lambda: read_captures([path])  # noqa: E731
    made = reduced(read(), Needs(THRESHOLDS, LENGTHS, LENGTHS))
    found = first_layer_statistics(made, "m", LENGTHS, RESAMPLING)
    found |= head_statistics(made, "m", LENGTHS, LENGTHS, RESAMPLING)
    found |= predictor_tables(made, "m", LENGTHS, "prompt", RESAMPLING)
    found["heldout"], found["heldout_errors"] = heldout_tables(read(), "m", THRESHOLDS, LENGTHS, RESAMPLING)
    found |= {"mechanism": mechanism_table(made, "m", RESAMPLING), "activations": activation_tables(made, "m")}
    found |= {"positions": position_tables(made, "m"), "sink_positions": sink_position_tables(made, "m")}
    found |= {"scores": score_tables(made, "m", 0.9), "arms": pd.DataFrame(arm_rows(read(), "a", 0.9, LENGTHS))}
    return {name: one if isinstance(one, pd.DataFrame) else pd.concat(one) for name, one in found.items()}


@pytest.fixture(scope="module")
def from_queries(captured) -> dict[str, pd.DataFrame]:
    return tables(captured("queries"))


@pytest.mark.parametrize(("keep", "batch"), [("lengths", None), ("queries", 1)])
def test_every_table_is_that_of_every_query_however_they_are_batched(captured, from_queries, monkeypatch, keep, batch):
    monkeypatch.setattr("sinkstudy.stats.scores._BATCH_BYTES", batch or 1 << 23)
    found = tables(captured(keep))
    assert found.keys() == from_queries.keys()
    for name, table in found.items():
        names = {column: str for column in ("model", "set", "prompt") if column in table}
        frames = (frame.reset_index(drop=True).astype(names) for frame in (table, from_queries[name]))
        pd.testing.assert_frame_equal(*frames, rtol=0, atol=1e-6, obj=name)


def test_curves_of_heads_are_those_of_every_query(captured):
    (_, scores, prompts), (lengths, found, counts) = (
        head_curves(read_captures([captured(n)])) for n in ("queries", "lengths")
    )
    assert len(lengths) < len(prompts)
    np.testing.assert_allclose(found, scores[..., lengths - 1], atol=1e-12)
    np.testing.assert_array_equal(counts, prompts[lengths - 1])


def test_the_file_says_what_it_keeps_and_holds_nothing_that_grows_with_layers_heads_and_queries(captured):
    with open_capture(captured("lengths")) as file:
        assert file.attributes["keep"] == "lengths"
    with open_capture(captured("queries")) as file:
        assert file.attributes["keep"] == "queries"
    with h5py.File(captured("lengths")) as file:
        group = max(file.values(), key=lambda one: len(one["token_ids"]))
        n = len(group["token_ids"])
        assert not {"sink_mass", "key_mass", "position_mass"} & group.keys()
        assert all(set(one.shape) <= {n, 2, 3} for one in group.values() if n in one.shape)
        assert group["lengths"][-1] == n


def test_the_explorer_shows_the_lengths_kept_and_says_so(captured):
    described = (read_study({"m": [captured(n)]}, [0.9], 0.9)[0] for n in ("queries", "lengths"))
    whole, some = (description["models"][0] for description in described)
    assert "some lengths" in some["origin"]
    assert "some lengths" not in whole["origin"]
    for prompt, of_queries in zip(some["prompts"], whole["prompts"], strict=True):
        assert set(prompt["lengths"]) <= set(of_queries["lengths"])
        assert prompt["receivers"] == of_queries["receivers"]


def test_a_verification_compares_the_scores_of_whole_prompts(captured):
    table = verify("m", toy(), [captured("lengths")], 2)
    assert table["max_mass_difference"].isna().all()
    assert (table["max_score_difference"] < 1e-4).all()


def learned_sinks(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    row_sum = rng.uniform(0.2, 0.9, (2, 3, n))
    return (row_sum * rng.uniform(0, 1, (2, 3, n))).astype(np.float32), row_sum.astype(np.float32)


@pytest.mark.parametrize("full_rows", [True, False])
def test_prefixes_of_either_kind_are_the_same(full_rows):
    mass, row_sum = learned_sinks(np.random.default_rng(0), 150)
    queries = replace(capture_of(mass), row_sum=None if full_rows else row_sum)
    means = kept(queries.key_mass, queries.row_sum, [30], [0.5])
    some = replace(queries, sink_mass=None, key_mass=None, row_sum=None, kept=means)
    whole, found = Prefixes([queries, queries]), Prefixes([some, some])
    for n in (2, 30, 150):
        np.testing.assert_allclose(found.at(n), whole.at(n), rtol=1e-12)
        np.testing.assert_array_equal(found.queries_above(0.5, n), whole.queries_above(0.5, n))
        for name in ("sink_mass", "sink_share", "key_mass"):
            np.testing.assert_allclose(found.mean(name, n, 1), whole.mean(name, n, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("ask", "said"),
    [(lambda p: p.at(31), ["31 tokens", "capture.keep"]), (lambda p: p.queries_above(0.4, 2), ["0.4", "thresholds"])],
)
def test_what_was_not_kept_is_named_in_one_sentence(ask, said):
    mass, _ = learned_sinks(np.random.default_rng(0), 40)
    capture = replace(capture_of(mass), kept=kept(mass[..., None], None, [30], [0.5]))
    with pytest.raises(StudyError) as refusal:
        ask(Prefixes([capture]))
    assert all(word in str(refusal.value) for word in ["'p'", *said])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda group: group["lengths"].__setitem__(-1, 1), "lengths"),
        (lambda group: group.__delitem__("mean_key_mass"), "mean_key_mass"),
        (lambda group: group["mean_sink_mass"].__setitem__((0, 0, 0), 0.5), "contradict"),
        (lambda group: group["mean_key_mass"].__setitem__((0, 0, 0, 0), np.nan), "between 0 and 1"),
    ],
)
def test_a_damaged_capture_of_lengths_is_refused_by_name(captured, tmp_path, refuses, change, said):
    path = tmp_path / "00000.h5"
    path.write_bytes(captured("lengths").read_bytes())
    with h5py.File(path, "a") as file:
        change(next(iter(file.values())))
    with refuses(str(path), said):
        list(read_captures([path]))


def test_captures_of_the_other_kind_are_refused_where_one_is_expected_or_they_are_mixed(captured, refuses):
    with refuses("keep is 'queries'", "'lengths'"):
        Expected({"keep": "lengths"}, {}).checked([captured("queries")])
    with refuses("same model, weights and settings"):
        list(read_captures([captured("queries"), captured("lengths")]))
