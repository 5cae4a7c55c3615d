"""Loading real directories in Hugging Face format, and turning text into tokens."""

import json
import platform
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from foreign import save_foreign_model
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from study import ROOT
from transformers import AutoModelForCausalLM

from sinkstudy.errors import StudyError
from sinkstudy.models.loading import encode, load_model, within_context
from sinkstudy.models.spec import ModelSpec


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return save_foreign_model(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def damaged(foreign, tmp_path):
    return shutil.copytree(foreign, tmp_path / "damaged")


def spec(folder, **settings):
    return ModelSpec(source=str(folder), device="cpu", **settings)


def test_a_sharded_checkpoint_loads_with_the_weights_it_was_saved_with(foreign):
    assert len(list(foreign.glob("model-*.safetensors"))) > 1
    loaded, plain = load_model(spec(foreign)), AutoModelForCausalLM.from_pretrained(foreign)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), plain.parameters(), strict=True))
    assert loaded.resolved.startswith("sha256:")
    assert not loaded.model.training


def test_random_weights_are_seeded_and_differ_from_the_checkpoint(foreign):
    one, same, other = (load_model(spec(foreign, random_weights=seed)).model.state_dict() for seed in (1, 1, 2))
    trained = load_model(spec(foreign)).model.state_dict()
    key = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(one[key], same[key])
    assert not torch.equal(one[key], other[key])
    assert not torch.equal(one[key], trained[key])


@pytest.mark.parametrize(("bos", "count"), [("auto", 1), ("always", 1), ("never", 0), ("double", 2)])
def test_bos_is_what_the_configuration_says(foreign, bos, count):
    loaded = load_model(spec(foreign, bos=bos))
    ids = encode(loaded, {"p": "Hello world"})["p"]
    assert ids.count(loaded.tokenizer.bos_token_id) == count
    assert loaded.tokenizer.decode(ids[count:]) == "Hello world"


@pytest.mark.parametrize("bos", ["auto", "always", "double"])
def test_a_bos_more_than_asked_for_is_refused(foreign, bos):
    loaded = load_model(spec(foreign, bos=bos))
    with pytest.raises(StudyError, match=r"prompt 'p'.*BOS twice"):
        encode(loaded, {"p": loaded.tokenizer.bos_token + "Hello"})


def test_a_prompt_beyond_the_context_is_cut_or_named(foreign, refuses):
    loaded = load_model(spec(foreign))
    context = loaded.model.config.max_position_embeddings
    token_ids = encode(loaded, {"short": "hello", "long": "hello " * context})
    cut = within_context(loaded, token_ids, "cut")
    assert cut == {"short": token_ids["short"], "long": token_ids["long"][:context]}
    assert len(token_ids["long"]) > context
    with refuses("'long'", str(len(token_ids["long"])), str(context), "capture.too_long"):
        within_context(loaded, token_ids, "refuse")


@pytest.mark.parametrize("text", ["日本語 🙂", "a\u0301e\u0308", "\u202eabc\u202c", "\x07\x1b", "\t\r\n", "🏳️‍🌈" * 50])
def test_the_reference_tokenizer_encodes_any_text(text):
    loaded = load_model(spec("models/reference"))
    ids = encode(loaded, {"p": text})["p"]
    assert ids[0] == loaded.tokenizer.bos_token_id
    assert len(ids) == 1 + len(text)


def test_a_tokenizer_that_is_a_sentencepiece_file_alone_encodes_as_that_file_does(foreign, tmp_path):
    folder = shutil.copytree(foreign, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    trained = {"model_prefix": str(folder / "tokenizer"), "vocab_size": 400, "model_type": "bpe", "minloglevel": 2}
    exact = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    lines = (ROOT / "texts/training.txt").read_text(encoding="utf-8").splitlines()
    SentencePieceTrainer.train(sentence_iterator=iter(lines), **trained, **exact)
    about = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    loaded = load_model(spec(folder, random_weights=0))
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = {"a": "The tide came in.", "b": "two  blanks\nand a line", "c": "naïve 漢"}
    assert encode(loaded, texts) == {name: [pieces.bos_id(), *pieces.encode(text)] for name, text in texts.items()}


def test_a_missing_tensor_is_refused(damaged):
    shard = sorted(damaged.glob("model-*.safetensors"))[0]
    tensors = load_file(shard)
    dropped = sorted(tensors)[0]
    del tensors[dropped]
    save_file(tensors, shard, metadata={"format": "pt"})
    index = damaged / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][dropped]
    index.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="1 tensors are missing"):
        load_model(spec(damaged))


def test_a_checkpoint_that_does_not_fit_its_configuration_is_refused(damaged):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(StudyError, match="damaged"):
        load_model(spec(damaged))


def test_a_checkpoint_of_more_layers_than_its_configuration_is_refused(damaged, refuses):
    """Also one of the Hub, which nobody has looked at before it is loaded."""
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with refuses(str(damaged), "its config.json names 1"):
        load_model(spec(damaged))


def test_a_missing_tokenizer_is_refused(damaged):
    for path in damaged.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(StudyError, match="no tokenizer that loads"):
        load_model(spec(damaged))


def test_a_hub_model_out_of_reach_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StudyError, match=r"'nobody/nothing' is not a local directory.*hf download nobody/nothing"):
        load_model(ModelSpec(source="nobody/nothing"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_refused(foreign):
    with pytest.raises(StudyError, match="no GPU"):
        load_model(ModelSpec(source=str(foreign), device="cuda"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_of_one_pass_is_there_for_the_next(foreign):
    """In a process of its own: a worker of pytest may run tests in a thread, whose memory glibc keeps elsewhere."""
    program = f"""
import resource, torch
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec
load_model(ModelSpec(source={str(foreign)!r}, device="cpu"))
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**18)  # These 64 MiB are more than glibc keeps by itself.
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    faults = [int(line) for line in told.splitlines()]
    # glibc puts an array at one of two neighbouring places, and each place is paid for once.
    paid = [count > 64 * 2**20 / resource.getpagesize() / 10 for count in faults]
    assert paid[0]
    assert sum(paid) <= 2
