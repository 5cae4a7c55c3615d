"""From prompts to a capture file on a real model."""

import shutil
import subprocess
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from arithmetic import assert_within, truth_of
from readable import readable_norms
from tiny import eager_maps, key_classes

from sinkstudy.capture import recording
from sinkstudy.capture.recording import record
from sinkstudy.errors import StudyError
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import Prompt
from sinkstudy.store import read_captures

PROMPTS = [
    Prompt("middle", "a", "A sentence of middling length."),
    Prompt("long", "b", "In the spring the river rose so high that the lower fields lay under water for eleven days."),
    Prompt("one", "a", "A"),
    Prompt("other", "b", "Another one, of no great length."),
]


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelSpec(source="models/reference", device="cpu"))


@pytest.fixture(scope="module")
def captured(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("captures") / "00000.h5"
    record(path, "reference", loaded, PROMPTS, maps_max_tokens=40)
    return path


def ids_of(capture):
    return torch.tensor(capture.token_ids, dtype=torch.long)[None]


def stored_as(maps):
    """Maps are rounded to multiples of 2^-14, then to float16, whose largest steps below 1 are 2^-11."""
    return replace(maps, allowed=maps.allowed + 2**-15 + 2**-12)


def test_captures_come_in_table_order_and_equal_eager_attention(loaded, captured):
    captures = list(read_captures([captured]))
    assert [c.prompt for c in captures] == [p.id for p in PROMPTS]
    for capture in captures:
        maps = truth_of(eager_maps, loaded.model, ids_of(capture))[:, 0]
        assert_within(torch.tensor(capture.sink_mass), maps[..., 0])
        with h5py.File(captured) as file:
            stored = file[capture.prompt].get("attention")
            assert (stored is not None) == (capture.n_tokens <= 40)
            if stored is not None:
                assert_within(torch.tensor(stored[()]), stored_as(maps))
                assert not np.triu(stored[()], 1).any()


def test_results_do_not_depend_on_batching(loaded, captured, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_SMALL_BATCH", 1)  # every prompt by itself
    record(tmp_path / "alone.h5", "reference", loaded, PROMPTS, maps_max_tokens=40)
    for together, alone in zip(read_captures([captured]), read_captures([tmp_path / "alone.h5"]), strict=True):
        assert together.prompt == alone.prompt
        masses = truth_of(eager_maps, loaded.model, ids_of(alone))[:, 0].map(key_classes)
        norms = truth_of(readable_norms, loaded.model, ids_of(alone))[:, 0].map(lambda norm: norm.mean(-1))
        for capture in (together, alone):
            assert_within(torch.tensor(capture.key_mass), masses)
            assert_within(torch.tensor(capture.output_norm), norms)


def test_provenance_is_stored_and_no_secret(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    path = tmp_path / "one.h5"
    record(path, "reference", loaded, PROMPTS[:1], maps_max_tokens=0)
    with h5py.File(path) as file:
        attributes = {name: _as_text(value) for name, value in file.attrs.items()}
    assert attributes["source"] == "models/reference"
    assert attributes["revision"].startswith("sha256:")
    assert (attributes["dtype"], attributes["bos"], attributes["device"]) == ("float32", "auto", "cpu")
    assert {"torch", "transformers", "schema", "model", "h5py", "quantization", "first_token_id"} <= attributes.keys()
    assert b"hf_secret_token" not in path.read_bytes()


def _as_text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("layer", [0, 3])
def test_weights_that_are_not_numbers_stop_the_job_and_leave_no_file(tmp_path, layer):
    broken = load_model(ModelSpec(source="models/reference", device="cpu"))
    with torch.no_grad():
        broken.model.model.layers[layer].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(StudyError, match=rf"model 'm', layer {layer}, prompt '\w+': attention is not finite"):
        record(tmp_path / "c.h5", "m", broken, PROMPTS, maps_max_tokens=40)
    assert list(tmp_path.iterdir()) == []


def test_attention_that_looks_ahead_stops_the_job_and_leaves_no_file(loaded, tmp_path, monkeypatch):
    def everything(batch_size, q_length, kv_length, **_):
        return torch.ones(batch_size, 1, q_length, kv_length, dtype=torch.bool)

    monkeypatch.setattr("sinkstudy.capture.interface.sdpa_mask", everything)
    with pytest.raises(StudyError, match=r"model 'm', layer 0, prompt '\w+': attention rows miss a sum of 1"):
        record(tmp_path / "c.h5", "m", loaded, PROMPTS, maps_max_tokens=40)
    assert list(tmp_path.iterdir()) == []


def test_stored_maps_take_little_and_any_reader_opens_them(loaded, tmp_path):
    path = tmp_path / "maps.h5"
    text = "The lighthouse keeper climbed the stairs every evening at the same hour. There were one hundred and twelve."
    record(path, "reference", loaded, [Prompt("p", "s", text)], maps_max_tokens=128)
    with h5py.File(path) as file:
        maps = file["p/attention"]
        assert maps.id.get_storage_size() <= 0.15 * maps.size * 4
        assert (maps.compression, maps.shuffle, maps.dtype) == ("gzip", True, np.float16)
    if shutil.which("h5dump"):
        dumped = subprocess.run(["h5dump", "-d", "/p/attention", str(path)], capture_output=True, text=True, check=True)
        assert "H5T_IEEE_F16LE" in dumped.stdout or "16-bit" in dumped.stdout
