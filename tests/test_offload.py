"""Models whose layers stay on disk: the same captures, to the last bit, and the settings that decide it."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ALL, prompt_ids, tiny_model

from sinkstudy.capture import watch_forward
from sinkstudy.errors import StudyError
from sinkstudy.evaluation.benchmark import benchmark_table
from sinkstudy.evaluation.variants import takes_plans
from sinkstudy.models import offload
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(folder: Path, model_type: str, **overrides: object) -> Path:
    tiny_model(model_type, **overrides).save_pretrained(folder, max_shard_size="20KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("models/reference") / name, folder)
    return folder


def masses(loaded, n: int) -> list[torch.Tensor]:
    seen = {}

    def keep(layer, found):
        norms = [] if found.norms is None else [found.norms.residual, found.norms.value, found.norms.output]
        parts = [found.keys, found.row_error, *(part for part in norms if part is not None)]
        seen[layer] = torch.cat([part.flatten() for part in parts])

    watch_forward(loaded.model, prompt_ids(n), keep, norms=True)
    return [seen[layer] for layer in sorted(seen)]


@pytest.mark.parametrize("model_type", ALL)
def test_an_offloaded_capture_is_the_same_to_the_last_bit(tmp_path, cache, model_type):
    spec = ModelSpec(str(saved(tmp_path / "model", model_type)))
    whole, parts = load_model(spec), load_model(spec, "always")
    assert parts.resolved == whole.resolved
    assert any(parameter.is_meta for parameter in parts.model.parameters())
    for n in (5, 24):
        assert all(map(torch.equal, masses(whole, n), masses(parts, n)))


def test_bfloat16_weights_are_computed_in_float32(tmp_path, cache):
    folder = tmp_path / "model"
    saved(folder, "llama")
    tiny_model("llama").bfloat16().save_pretrained(folder)
    spec = ModelSpec(str(folder), dtype="float32")
    assert all(map(torch.equal, masses(load_model(spec), 24), masses(load_model(spec, "always"), 24)))


def test_auto_offloads_what_takes_more_than_its_share_of_the_memory(tmp_path, cache):
    spec = ModelSpec(str(saved(tmp_path / "model", "llama")))
    needed = sum(parameter.numel() for parameter in load_model(spec).model.parameters()) * 4
    for memory, offloaded in ((int(needed / offload.SHARE) + 1, False), (int(needed / offload.SHARE) - 1, True)):
        model = load_model(spec, "auto", memory).model
        assert any(parameter.is_meta for parameter in model.parameters()) == offloaded


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path, cache):
    spec = ModelSpec(str(saved(tmp_path / "model", "llama")))
    with pytest.raises(StudyError, match=r"of memory are free; set capture.offload to auto") as refused:
        load_model(spec, "never", 1000)
    assert str(tmp_path / "model") in str(refused.value)


@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_stay_on_disk_and_the_head_works(tmp_path, cache, tied):
    spec = ModelSpec(str(saved(tmp_path / "model", "llama", tie_word_embeddings=tied)))
    whole, parts = load_model(spec).model, load_model(spec, "always").model
    assert parts.lm_head.weight.is_meta
    ids = prompt_ids(24)
    for _ in range(2):  # what a pass brought in is gone before the next
        assert torch.equal(parts(ids).logits, whole(ids).logits)
        assert parts.model.embed_tokens.weight.shape == (0, whole.config.hidden_size)
    assert parts.model.embed_tokens.num_embeddings == whole.config.vocab_size


def test_the_limit_of_the_process_counts_as_memory():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY));"
        "from sinkstudy.models.offload import free_memory; print(free_memory())"
    )
    limited = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0 < limited < 8 << 30
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


KILLED = """
import os, signal, sys
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec
load_model(ModelSpec(sys.argv[1]), "always")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_copies_of_a_killed_process_go_with_the_next_one(tmp_path, cache):
    folder = saved(tmp_path / "model", "mixtral")  # its experts are put together, so copies of them are written
    run = [sys.executable, "-c", KILLED, str(folder)]
    assert subprocess.run(run, capture_output=True, check=False).returncode == -signal.SIGKILL
    (left,) = (cache / "offload").iterdir()
    assert list(left.glob("*.safetensors"))
    load_model(ModelSpec(str(folder)), "always")
    assert [path.name for path in (cache / "offload").iterdir()] == [str(os.getpid())]


def test_layers_that_are_left_in_the_checkpoint_are_not_copied(tmp_path, cache):
    load_model(ModelSpec(str(saved(tmp_path / "model", "llama"))), "always")
    assert not list(cache.rglob("*.safetensors"))


def test_an_offloaded_model_is_neither_timed_nor_planned_for(tmp_path, cache):
    model = load_model(ModelSpec(str(saved(tmp_path / "model", "llama"))), "always").model
    assert not takes_plans(model)
    assert benchmark_table(model, "m", list(range(3, 90)), [], {}).empty
