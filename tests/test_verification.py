"""Captures are recomputed by eager attention, and what differs by more than rounding stops the job."""

from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.capture import sink_mass
from sinkstudy.capture.recording import record
from sinkstudy.capture.verification import TOLERANCE, eager_masses, verify
from sinkstudy.measures.captured import Keep
from sinkstudy.models.loading import LoadedModel, ModelSpec, load_model
from sinkstudy.prompts import Prompt
from sinkstudy.store import read_captures

PROMPTS = [Prompt("hello", "short", "Hello world"), Prompt("day", "short", "Good day to you")]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelSpec(source="models/reference", device="cpu"))


@pytest.fixture
def capture(loaded, tmp_path) -> Path:
    path = tmp_path / "00000.h5"
    record(path, "m", loaded, PROMPTS, maps_max_tokens=0)
    return path


def shift_masses(path: Path, by: float) -> None:
    """As a broken kernel would: the masses of one head, consistently in both datasets."""
    with h5py.File(path, "a") as file:
        for name, index in (("sink_mass", (1, 2)), ("key_mass", (1, 2, slice(None), 0))):
            file["day"][name][index] = file["day"][name][index] + by


def test_a_capture_of_this_model_is_verified(loaded, capture):
    table = verify("m", loaded, [capture], 2)
    assert table["prompt"].tolist() == ["hello", "day"]
    assert (table["max_mass_difference"] < 1e-5).all()


def test_a_difference_above_the_tolerance_is_one_sentence_and_one_below_it_is_a_row(loaded, capture, refuses):
    tolerance = TOLERANCE[loaded.model.dtype]
    shift_masses(capture, 0.5 * tolerance)
    table = verify("m", loaded, [capture], 2)
    assert table["max_score_difference"].max() == pytest.approx(0.5 * tolerance, rel=0.1)
    shift_masses(capture, tolerance)
    with refuses("'m'", "'day'", f"{tolerance:g}", str(capture.parent)):
        verify("m", loaded, [capture], 2)


def test_a_capture_of_other_weights_is_refused(loaded, tmp_path, refuses):
    other = load_model(ModelSpec(source="models/reference", device="cpu", random_weights=0))
    record(tmp_path / "00000.h5", "m", other, PROMPTS, maps_max_tokens=0)
    with refuses("00000.h5", "random weights, seed 0", loaded.resolved):
        verify("m", loaded, [tmp_path / "00000.h5"], 2)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_that_the_model_does_not_have_are_refused(loaded, capture, refuses, token):
    with h5py.File(capture, "a") as file:
        file["day/token_ids"][1] = token
    with refuses("'m'", "'day'", "does not have", str(capture.parent)):
        verify("m", loaded, [capture], 2)


def test_layers_that_return_something_else_in_the_place_of_weights_are_left_out():
    """MiniMax's linear layers do."""
    model, ids = tiny_model("minimax", num_experts_per_tok=4, num_local_experts=4), prompt_ids(12)
    eager, _ = eager_masses(LoadedModel(model, None, ModelSpec("made up"), "none"), ids[0].numpy())
    torch.testing.assert_close(torch.from_numpy(eager), sink_mass(model, ids).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", [None, Keep([4], [0.9])])
@pytest.mark.parametrize("model_type", ["gpt_oss", "granite_swa"])
def test_learned_sinks_are_verified_whether_eager_weights_show_them_or_not(loaded, tmp_path, model_type, keep):
    tokens = loaded.tokenizer.vocab_size
    model = tiny_model(model_type, vocab_size=tokens, sliding_window=64, num_experts_per_tok=4, num_local_experts=4)
    learned = replace(loaded, model=model)
    record(tmp_path / "00000.h5", "m", learned, PROMPTS, maps_max_tokens=0, keep=keep)
    table = verify("m", learned, [tmp_path / "00000.h5"], 2)
    assert (table["max_score_difference"] < 1e-5).all()
    (first,) = (capture for capture in read_captures([tmp_path / "00000.h5"]) if capture.prompt == "hello")
    rows = first.row_sum if keep is None else first.kept.mean_row_sum
    assert rows.min() < 0.99
