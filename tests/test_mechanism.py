"""Activations, value drain and positions: from captures to tables, figures and the verdict."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_captures import capture_of
from scipy.stats import spearmanr
from test_verdicts import without_nan
from tiny import planted_config
from toy import PROMPTS, toy

from sinkstudy.capture import watch_forward
from sinkstudy.capture.recording import record
from sinkstudy.figures.mechanism import activation_figure, position_figure
from sinkstudy.findings.mechanism import drained, mechanism, sink_places, spans
from sinkstudy.measures.captured import Capture
from sinkstudy.reference.planted import plant_sinks, planted_ids
from sinkstudy.stats.mechanism import activation_tables, mechanism_table
from sinkstudy.stats.positions import (
    candidates,
    kind_of,
    position_tables,
    sink_position_tables,
    sink_shares,
    strongest_receivers,
    uniform_attention,
)
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import excess_score, null_score
from sinkstudy.store import read_captures
from sinkstudy.store.tables import LongTable, write_long_table

RESAMPLING = Resampling(200, 10, 0)
LAYERS, HEADS = 6, 4
NONE = Needs([0.9], [])


def prompts(levels: np.ndarray, activation: np.ndarray, drain: np.ndarray, n: int = 30) -> list[Capture]:
    """A capture per row of `levels` (prompt, layer), the mass that all later queries of a layer put on the first
    token; `activation` (prompt, layer) and `drain` (prompt, layer, head)."""
    captures = []
    for i, level in enumerate(levels):
        mass = np.repeat(level[:, None, None], HEADS, 1).repeat(n, 2)
        mass[..., 0] = 1
        channels = np.tile([5, 2, 0], (len(level), 1))
        measured = {"activation": activation[i], "value_drain": drain[i], "activation_channel": channels}
        captures.append(Capture(**vars(capture_of(mass, f"p{i}")) | measured | {"channel_value": channels * 10.0}))
    return captures


def drawn(count: int, seed: int = 0, sign: int = 1) -> list[Capture]:
    """Sinks where the activation is high (`sign` 1) or low (-1), with some noise, from the third layer on."""
    rng = np.random.default_rng(seed)
    activation = np.array([1, 1, 5, 9, 40, 20.0]) * rng.uniform(0.9, 1.1, (count, LAYERS))
    levels = np.array([0.05, 0.05, 0.6, 0.7, 0.9, 0.8])[::sign] * rng.uniform(0.95, 1.05, (count, LAYERS))
    drain = np.repeat(1.1 - levels[..., None], HEADS, -1) * rng.uniform(0.9, 1.1, (count, LAYERS, HEADS))
    return prompts(levels, activation, drain)


def test_the_quantities_are_those_that_pandas_finds_in_the_rows_of_every_prompt():
    made = reduced(drawn(5), NONE)
    table, rows = mechanism_table(made, "m", RESAMPLING), pd.concat(activation_tables(made, "m"))
    assert rows.groupby("prompt").size().tolist() == [LAYERS * (1 + HEADS)] * 5
    layers = rows[rows["head"].isna()].groupby("layer")[["activation", "excess_score", "value_drain"]].mean()
    heads = rows[rows["head"].notna()].groupby(["layer", "head"])[["excess_score", "value_drain"]].mean()
    is_sink = heads["excess_score"] >= 0.5
    found = table[table["layer"].isna()].set_index("quantity")["value"]
    expected = {
        "activation_correlation": layers["activation"].corr(layers["excess_score"], "spearman"),
        "drain_correlation": heads["value_drain"].corr(heads["excess_score"], "spearman"),
        "sink_head_drain": heads.loc[is_sink, "value_drain"].median(),
        "other_head_drain": heads.loc[~is_sink, "value_drain"].median(),
        "highest_excess": heads["excess_score"].max(),
        "activation_p_value": spearmanr(layers["activation"], layers["excess_score"], alternative="greater").pvalue,
    }
    assert found.to_dict() == pytest.approx(expected)
    for name in layers:
        np.testing.assert_allclose(table.loc[table["quantity"] == name, "value"], layers[name])
    assert set(rows["channel"].dropna()) == {5}
    assert (table["low"].fillna(-np.inf) <= table["value"]).all()
    assert (table["value"] <= table["high"].fillna(np.inf)).all()


def test_scores_of_a_prompt_are_those_of_its_whole_length():
    (capture,) = drawn(1)
    rows = pd.concat(activation_tables(reduced([capture], NONE), "m")).dropna(subset="head")
    score = capture.sink_mass.mean(-1, dtype=float)
    np.testing.assert_allclose(rows["sink_score"], score.ravel())
    np.testing.assert_allclose(rows["excess_score"], excess_score(score, null_score(30)).ravel())


def test_prompts_that_all_look_alike_leave_no_doubt_and_their_order_changes_nothing():
    captures = drawn(4)
    one, other = (mechanism_table(reduced(c, NONE), "m", RESAMPLING) for c in (captures, captures))
    pd.testing.assert_frame_equal(one, other)
    same = mechanism_table(reduced([captures[0]] * 4, NONE), "m", RESAMPLING)
    np.testing.assert_allclose(same["low"], same["high"])


NAN_DRAIN = np.full((4, LAYERS, HEADS), np.nan)


@pytest.mark.parametrize(
    ("captures", "holds", "said"),
    [
        (drawn(6), True, ["layers 2 to 5", "layer 4", "sets in at layer 2", "cannot predict"]),
        (drawn(6, sign=-1), False, ["do not surely"]),
        (drawn(1), None, ["fewer than two prompts"]),
        (prompts(np.full((4, LAYERS), 0.1), np.full((4, LAYERS), 9.0), NAN_DRAIN), None, ["no sinks to explain"]),
        (prompts(np.full((4, LAYERS), 0.9), np.ones((4, LAYERS)), NAN_DRAIN), False, ["in no layer surely 3 times"]),
        (prompts(np.full((4, LAYERS), 0.9), np.full((4, LAYERS), np.nan), NAN_DRAIN), None, ["does not show"]),
        ([capture_of(np.full((LAYERS, HEADS, 9), 0.9), f"p{i}") for i in range(3)], None, ["does not show"]),
        (prompts(np.full((4, 1), 0.9), np.full((4, 1), 9.0), NAN_DRAIN[:, :1]), None, ["single attention layer"]),
        (prompts(np.full((4, LAYERS), 0.9), np.ones((4, LAYERS)), NAN_DRAIN, n=1), None, ["two tokens"]),
        ([], None, ["two tokens"]),
    ],
)
def test_the_verdict_on_the_mechanism(captures, holds, said):
    made = reduced(captures, NONE)
    table = mechanism_table(made, "m", RESAMPLING)
    verdict = mechanism(table)
    assert without_nan(verdict, *said) is holds
    assert (drained(table) is None) == (table["value"][table["quantity"] == "drain_correlation"].isna().all())
    list(activation_tables(made, "m"))
    activation_figure(table)


def test_activation_that_has_nothing_to_do_with_sinks_is_called_a_mechanism_in_5_of_100_models_at_most():
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        levels, activation = (rng.permutation(np.linspace(*ends, 12)) for ends in ((0.1, 0.9), (1, 50)))
        near = rng.uniform(0.95, 1.05, (2, 8, 12))
        captures = prompts(levels * near[0], activation * near[1], np.ones((8, 12, HEADS)))
        verdict = mechanism(mechanism_table(reduced(captures, NONE), "m", Resampling(20, 10, seed)))
        held += verdict.holds is True
        expected = spearmanr(levels, activation).statistic
        assert verdict.numbers["activation_correlation"] == pytest.approx(expected, abs=0.15)
    assert held <= 5


def test_layers_in_words():
    assert spans([3, 4, 5, 9, 12, 13]) == "3 to 5, 9 and 12 to 13"
    assert spans([7]) == "7"


# Positions


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [("delimiter", [".", "\n\n", "  ", "。", ").", " -"]), ("other", [" the", "1", "+", "\ufffd", "a.", "<s>"])],
)
def test_kinds_of_tokens(kind, tokens):
    assert {kind_of(3, token) for token in tokens} == {kind}
    assert {kind_of(0, token) for token in tokens} == {"first"}


@pytest.mark.parametrize("n", [2, 3, 24, 200])
def test_uniform_attention_and_candidates(n):
    rows = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    by_hand = [rows[j + 1 :, j].mean() if j + 1 < n else np.nan for j in range(n)]
    np.testing.assert_allclose(uniform_attention(n), by_hand)
    assert {2: 1, 3: 2, 24: 12, 200: 150}[n] == candidates(n)


def with_positions(position_mass: np.ndarray) -> Capture:
    layers, heads, n = position_mass.shape
    plain = capture_of(np.ones((layers, heads, n)), "p")
    tokens = ["The", ",", "\r", "", *(f" w{i}" for i in range(n - 4))][:n]
    return replace(plain, position_mass=position_mass.astype(np.float32), tokens=tokens)


@given(data=st.data())
def test_planted_sinks_anywhere_are_found_and_named(data):
    n, layers, heads = data.draw(st.integers(24, 90)), 2, 3
    planted = data.draw(st.lists(st.integers(0, candidates(n) - 1), min_size=6, max_size=6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = np.tril(rng.random((layers, heads, n, n)) + 0.01)
    for (layer, head), position in zip(np.ndindex(layers, heads), planted, strict=True):
        rows[layer, head, position:, position] += 2 * n  # most of each row
    rows /= rows.sum(-1, keepdims=True)
    mass = np.stack([rows[..., j + 1 :, j].mean(-1) if j + 1 < n else rows[..., 0, 0] for j in range(n)], -1)
    capture = with_positions(mass)
    made = reduced([capture], NONE)
    (_, heads_table), (_, positions) = sink_position_tables(made, "m"), position_tables(made, "m")
    assert heads_table["position"].tolist() == planted
    assert heads_table["token"].tolist() == [repr(capture.tokens[position])[1:-1] for position in planted]
    assert (heads_table["mean_attention"] > 0.5).all()
    counts = np.bincount(planted, minlength=n) / 6
    np.testing.assert_allclose(positions["sink_heads"].fillna(0), counts)
    np.testing.assert_allclose(positions["strongest_heads"].fillna(0), counts)
    shares = sink_shares([heads_table], 24)
    assert shares["first"].mean() == pytest.approx(counts[0])
    assert shares["delimiter"].mean() == pytest.approx(counts[1:3].sum() + counts[3])
    places = sink_places(heads_table)
    assert (places["cases"], sum(place["heads"] for place in places["elsewhere"])) == (6, 6 - planted.count(0))
    position_figure(strongest_receivers([positions], 24, 3), shares, "m")


def test_a_sink_planted_at_position_5_of_a_model_is_found_by_its_captured_positions():
    config, planted = planted_config(), np.random.default_rng(1).random((4, 8)) < 0.4
    model, ids = plant_sinks(config, planted * 0.99, n_tokens=64), planted_ids(config, 64)
    ids[0, [0, 5]] = ids[0, [5, 0]]  # The token that the heads look for.
    layers = {}
    keep = lambda layer, masses: layers.update({layer: masses.received})  # noqa: E731
    watch_forward(model, ids, keep, counted=torch.ones_like(ids, dtype=torch.bool))
    received = torch.stack([layers[layer][0] for layer in range(4)]) / torch.arange(63, -1, -1).clamp(min=1)
    capture = replace(with_positions(received.numpy()), tokens=[f"t{i}" for i in range(64)])
    _, table = sink_position_tables(reduced([capture], NONE), "m")
    is_sink = (table["mean_attention"] >= 0.3).to_numpy().reshape(4, 8)
    assert (is_sink == planted).all()
    assert set(table.loc[planted.ravel(), "token"]) == {"t5"}


def test_without_captured_positions_the_tables_have_a_header_and_the_figure_says_so(tmp_path):
    capture = with_positions(np.ones((1, 1, 9)))
    bare = replace(capture, position_mass=None)
    none = []
    for make in (position_tables, sink_position_tables):
        folder = tmp_path / make.__name__
        write_long_table(make(reduced([bare], NONE), "m"), folder, tmp_path / "none.csv")
        write_long_table(make(reduced([capture], NONE), "m"), tmp_path / "some", tmp_path / "some.csv")
        assert (tmp_path / "none.csv").read_text() == (tmp_path / "some.csv").read_text().splitlines(True)[0]
        none.append(LongTable([folder]))
    positions, sinks = none
    position_figure(strongest_receivers(positions, 24, 3), sink_shares(sinks, 24), "m")
    assert sink_places(sinks.only(lambda rows: rows["position"] > 0))["cases"] == 0


# On the shipped model


@pytest.fixture(scope="module")
def loaded():
    return toy()


def test_recorded_activations_and_positions_are_those_of_prompts_without_padding(loaded, tmp_path):
    record(tmp_path / "c.h5", "m", loaded, PROMPTS, maps_max_tokens=0, positions_max_tokens=30)
    for capture in read_captures([tmp_path / "c.h5"]):
        ids = torch.tensor(capture.token_ids, dtype=torch.long)[None]
        loaded.model.set_attn_implementation("eager")
        with torch.no_grad():
            said = loaded.model(ids, output_attentions=True, output_hidden_states=True, use_cache=True)
        loaded.model.set_attn_implementation("sdpa")
        maps = torch.stack(said.attentions)[:, 0].numpy()
        norms = torch.stack(said.hidden_states[:-1])[:, 0].norm(dim=-1).numpy()
        values = np.stack([layer.values[0].norm(dim=-1).numpy() for layer in said.past_key_values.layers])
        groups = maps.shape[1] // values.shape[1]
        n = capture.n_tokens
        np.testing.assert_allclose(capture.activation, norms[:, 0] / np.median(norms[:, 1:], -1), rtol=1e-5)
        drain = (values[..., 0] / np.median(values[..., 1:], -1)).repeat(groups, 1)
        np.testing.assert_allclose(capture.value_drain, drain, rtol=1e-5)
        assert (capture.position_mass is not None) == (n <= 30)
        if n <= 30:
            means = [maps[..., j + 1 :, j].mean(-1) for j in range(n - 1)]
            np.testing.assert_allclose(capture.position_mass[..., :-1], np.stack(means, -1), atol=1e-5)
            assert np.isnan(capture.position_mass[..., -1]).all()
