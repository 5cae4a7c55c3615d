"""A model's directory decides nothing but numbers, unless the configuration says so."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from foreign import save_foreign_model
from safetensors.torch import load_file

from sinkstudy.models.check import check_checkpoint
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec

MODEL_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class MyConfig(LlamaConfig):
    model_type = "mine"


class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


class Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    return save_foreign_model(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "somebody_elses_code_ran"


@pytest.fixture
def with_code(foreign, tmp_path, marker, monkeypatch) -> Path:
    """A model whose configuration and class come with it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(foreign, tmp_path / "with_code")
    (folder / "mine.py").write_text(MODEL_CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def pickled(foreign, tmp_path) -> Path:
    """The model with its weights in PyTorch's own format only."""
    folder = shutil.copytree(foreign, tmp_path / "pickled")
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("offload", [None, "auto"])
@pytest.mark.parametrize("settings", [{}, {"random_weights": 0}], ids=["weights", "random weights"])
def test_code_of_a_model_does_not_run_and_nobody_is_asked(with_code, marker, refuses, settings, offload):
    with refuses("with_code", "trust_remote_code"):
        load_model(ModelSpec(str(with_code), device="cpu", **settings), offload)
    assert not marker.exists()


@pytest.mark.parametrize("offload", [None, "auto"])
def test_code_of_a_model_runs_where_the_configuration_trusts_it(with_code, marker, offload):
    loaded = load_model(ModelSpec(str(with_code), device="cpu", trust_remote_code=True), offload)
    assert type(loaded.model).__name__ == "MyModel"
    assert marker.exists()


def test_pickled_weights_are_refused_before_a_job_and_in_it(pickled, refuses):
    with refuses("pickled", "safetensors", "allow_pickle"):
        check_checkpoint(pickled)
    with refuses("pickled"):
        load_model(ModelSpec(str(pickled), device="cpu"))


def test_a_pickle_that_would_run_code_is_not_opened(pickled, marker, refuses):
    torch.save(Touches(marker), pickled / "pytorch_model.bin")
    with refuses("pickled"):
        load_model(ModelSpec(str(pickled), device="cpu"))
    assert not marker.exists()


def test_pickled_weights_load_where_the_configuration_allows_them_and_then_only_tensors(
    pickled, foreign, marker, refuses
):
    check_checkpoint(pickled, pickled=True)
    loaded = load_model(ModelSpec(str(pickled), device="cpu", allow_pickle=True)).model.state_dict()
    original = load_model(ModelSpec(str(foreign), device="cpu")).model.state_dict()
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    torch.save(Touches(marker), pickled / "pytorch_model.bin")
    with refuses("pickled"):
        load_model(ModelSpec(str(pickled), device="cpu", allow_pickle=True))
    assert not marker.exists()
