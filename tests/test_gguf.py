"""GGUF files become directories in Hugging Face format: the same model, the file's tokenizer, or one sentence."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import FAMILIES, byte_level_tokenizer, sentencepiece_tokenizer, write_gguf
from study import SMALL, documented, planned, snakemake, write_study
from tiny import prompt_ids, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sinkstudy.models import conversion
from sinkstudy.models.cache import VARIABLE, converted_folder
from sinkstudy.models.conversion import convert_once
from sinkstudy.models.loading import encode, load_model
from sinkstudy.models.sources import file_sha256
from sinkstudy.models.spec import ModelSpec, pinned

ROPE = {"rope_theta": 50_000.0, "rope_type": "default"}
SHAPE = {"vocab_size": 320, "intermediate_size": 64}
OVERRIDES = {
    "llama": {"rope_parameters": ROPE, "rms_norm_eps": 1e-5},
    "qwen2": {"rope_parameters": ROPE, "use_sliding_window": False},
    "qwen3": {"head_dim": 16},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": {"num_hidden_layers": 7},
    "gpt2": {"n_positions": 512},
    "phi3": {"sliding_window": 7, "pad_token_id": None},
    "stablelm": {"use_parallel_residual": True, "use_qkv_bias": True},
}
HELLO = "Hello world 2048"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tiny.gguf"


def model_of(family: str, **overrides: object):
    return tiny_model(family, **{**SHAPE, **OVERRIDES.get(family, {}), **overrides})


def converted(path: Path) -> Path:
    return converted_folder(convert_once(path, None)["sha256"])


def logits_differ_by(model, folder: Path) -> float:
    """From those of the same weights saved as safetensors and loaded by Transformers."""
    model.save_pretrained(folder.parent / "plain")
    ids = prompt_ids(40, vocabulary=model.config.vocab_size)
    with torch.no_grad():
        plain, other = (
            AutoModelForCausalLM.from_pretrained(place)(ids).logits for place in (folder.parent / "plain", folder)
        )
    return (plain - other).abs().max().item()


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_file_computes_what_was_written(family, kind, path):
    model = model_of(family)
    write_gguf(model, path, quantized=kind)
    record = convert_once(path, None)
    assert record["quantization"].split(" x ")[0] in (kind.name, "F32")
    assert kind.name in record["quantization"]
    assert logits_differ_by(model, converted_folder(record["sha256"])) <= 1e-5


def test_windows_and_tied_embeddings_are_among_those_compared():
    assert model_of("phi3").config.sliding_window == 7
    assert "sliding_attention" in model_of("gemma3_text").config.layer_types
    assert model_of("gpt2").config.tie_word_embeddings
    assert not model_of("llama").config.tie_word_embeddings


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tied_embeddings_stay_tied(family, path):
    model = model_of(family, tie_word_embeddings=True)
    write_gguf(model, path)
    folder = converted(path)
    assert logits_differ_by(model, folder) <= 1e-5
    assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings


def llama3_factors(width: int, base: float, factor: float) -> np.ndarray:
    """Llama 3.1's rule, number by number: long wavelengths are stretched, short ones kept, a blend between."""
    factors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * base ** (i / width)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def test_the_rope_scaling_of_llama_3_is_found_in_its_factors(path):
    rope = {
        "rope_theta": 500_000.0,
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = model_of("llama", rope_parameters=rope, head_dim=32, max_position_embeddings=131_072)
    write_gguf(model, path, more={"rope_freqs.weight": llama3_factors(32, 500_000.0, 32.0)})
    assert logits_differ_by(model, converted(path)) <= 1e-5


def test_linear_rope_scaling_is_carried_over(path):
    model = model_of("llama", rope_parameters={"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0})

    def scaled(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    write_gguf(model, path, extra=scaled)
    assert logits_differ_by(model, converted(path)) <= 1e-5


def tokens_of(path: Path, **settings: object) -> list[str]:
    record = convert_once(path, None)
    loaded = load_model(ModelSpec(str(path), device="cpu", sha256=record["sha256"], **settings))
    ids = encode(loaded, {"p": HELLO})["p"]
    return loaded.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    ("pre", "digits"),
    [("smollm", ["2", "0", "4", "8"]), ("gpt-2", ["2048"]), ("llama-bpe", ["204", "8"]), (None, ["2048"])],
)
def test_the_files_pre_tokenizer_splits_the_text(path, pre, digits):
    write_gguf(model_of("llama"), path, tokenizer=partial(byte_level_tokenizer, pre=pre, add_bos=False))
    convert_once(path, None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(converted(path))
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 2048")]
    assert "".join(pieces).endswith("2048")
    assert [piece.lstrip("\u0120") for piece in pieces if any(c.isdigit() for c in piece)] == digits


@pytest.mark.parametrize(
    ("tokenizer", "bos", "first"),
    [
        (partial(byte_level_tokenizer, add_bos=True), "auto", "<|start|>"),
        (partial(byte_level_tokenizer, add_bos=False), "auto", None),
        (byte_level_tokenizer, "auto", None),  # llama.cpp's default for byte-level vocabularies ...
        (partial(byte_level_tokenizer, pre="llama-bpe"), "auto", "<|start|>"),  # ... but for Llama 3's
        (partial(byte_level_tokenizer, add_bos=False), "always", "<|start|>"),
        (partial(byte_level_tokenizer, add_bos=True), "never", None),
        (sentencepiece_tokenizer, "auto", "<s>"),  # SentencePiece vocabularies have one unless told
        (partial(sentencepiece_tokenizer, add_bos=False), "auto", None),
    ],
)
def test_bos_follows_the_files_own_rule_or_the_configuration(path, tokenizer, bos, first):
    write_gguf(model_of("llama", vocab_size=420), path, tokenizer=tokenizer)
    tokens = tokens_of(path, bos=bos)
    assert tokens[:1] == [first] if first else not tokens[0].startswith("<")
    assert not tokens[1].startswith("<")  # once is enough


def test_special_tokens_and_the_chat_template_are_the_files(path):
    write_gguf(model_of("llama"), path, extra=lambda writer: writer.add_chat_template("{{ messages }}!"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(converted(path))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|start|>")
    assert tokenizer.chat_template == "{{ messages }}!"
    assert tokenizer("<|start|>hi")["input_ids"][0] == 0  # a control token stays whole


def unmapped(writer: gguf.GGUFWriter) -> None:
    writer.add_string("general.architecture", "unheard-of")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def cut_in_its_metadata(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:])


def another_version(path: Path) -> None:
    path.write_bytes(b"GGUF\x01\0\0\0" + path.read_bytes()[8:])


def infinite(model) -> None:
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")


WRITTEN_WRONG = {
    "a tensor is missing": ({"leave_out": "blk.1.ffn_down"}, ["1 tensors are missing", "layers.1.mlp.down_proj"]),
    "a tensor has no place": (
        {"more": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}},
        ["1 tensors have no place", "blk.0.attn_q.bias"],
    ),
    "a part of a split model": ({"extra": lambda w: w.add_uint16("split.count", 3)}, ["one of 3 parts", "--merge"]),
    "yarn": (
        {"extra": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)},
        ["RoPE scaling of type 'yarn'", "Hugging Face format"],
    ),
    "long rope": ({"more": {"rope_factors_long.weight": np.ones(4, np.float32)}}, ["LongRoPE"]),
    "other rope factors": ({"more": {"rope_freqs.weight": np.full(4, 3.0, np.float32)}}, ["rope_freqs.weight"]),
    "a key nobody knows": ({"extra": lambda w: w.add_float32("llama.attention.scale", 0.3)}, ["llama.attention.scale"]),
    "not causal": ({"extra": lambda w: w.add_causal_attention(False)}, ["llama.attention.causal = False"]),
    "values of another width": ({"extra": lambda w: w.add_value_length(4)}, ["llama.attention.value_length = 4"]),
    "a window for no layer": ({"extra": lambda w: w.add_sliding_window(9)}, ["llama.attention.sliding_window = 9"]),
    "an unknown pre-tokenizer": (
        {"tokenizer": partial(byte_level_tokenizer, pre="klingon")},
        ["pre-tokenizer 'klingon'", "Hugging Face format"],
    ),
    "no tokenizer": ({"tokenizer": lambda writer, size: None}, ["holds no tokenizer"]),
    "an unknown tokenizer": (
        {"tokenizer": lambda w, size: (w.add_tokenizer_model("rwkv"), w.add_token_list(["a"] * size))},
        ["rwkv"],
    ),
}
DAMAGED = {
    "truncated": (cut_short, ["truncated or damaged", "fetch it again"]),
    "truncated in its metadata": (cut_in_its_metadata, ["truncated or damaged"]),
    "foreign": (foreign, ["is not a GGUF file"]),
    "an old version": (another_version, ["version"]),
}


@pytest.mark.parametrize("case", WRITTEN_WRONG)
def test_what_cannot_be_carried_over_is_refused_in_one_sentence(case, path, cache, refuses):
    settings, mentions = WRITTEN_WRONG[case]
    write_gguf(model_of("llama"), path, **settings)
    with refuses(path.name, *mentions):
        convert_once(path, None)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(case, path, cache, refuses):
    damage, mentions = DAMAGED[case]
    write_gguf(model_of("llama"), path)
    damage(path)
    with refuses(path.name, *mentions):
        convert_once(path, None)
    assert not list(cache.rglob("*.safetensors"))


def test_an_architecture_transformers_does_not_map_is_refused(path, refuses):
    writer = gguf.GGUFWriter(path, "rwkv9")
    byte_level_tokenizer(writer, 300)
    writer.add_tensor("token_embd.weight", np.zeros((300, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with refuses("architecture 'rwkv9'", "Hugging Face format"):
        convert_once(path, None)


def test_weights_that_are_not_finite_are_named(path, refuses):
    model = model_of("llama")
    infinite(model)
    write_gguf(model, path, quantized=Kind.F32)
    with refuses("1 tensors hold numbers that are not finite", "layers.1.input_layernorm"):
        convert_once(path, None)


def test_another_digest_than_configured_is_refused(path, refuses):
    write_gguf(model_of("llama"), path)
    with refuses("SHA-256", file_sha256(path), "0" * 64):
        convert_once(path, "0" * 64)


def test_one_conversion_serves_all_and_needs_the_file_no_more(path, capsys):
    write_gguf(model_of("llama"), path)
    first = convert_once(path, None)
    assert "converted" in capsys.readouterr().err
    path.write_bytes(path.read_bytes())
    assert convert_once(path, first["sha256"]) == first
    path.unlink()
    assert convert_once(path, first["sha256"]) == first
    assert "converted" not in capsys.readouterr().err


CONVERT = """
import os, signal, sys
from pathlib import Path
from sinkstudy.models import conversion
if sys.argv[2] != "never":
    killed = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    setattr(conversion, sys.argv[2], killed)
conversion.convert_once(Path(sys.argv[1]), None)
"""

# Shards are made small, as the model is; the last line is the most memory the process held, in bytes.
PEAK = """
import sys
from pathlib import Path
from sinkstudy.models import conversion, sharded
conversion.write_shards = lambda folder, parts: sharded.write_shards(folder, parts, 1 << 20)
conversion.convert_once(Path(sys.argv[1]), None)
print(next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.parametrize("moment", ["tokenizer_of", "write_shards", "check_saved"])
def test_a_kill_during_conversion_leaves_nothing_under_the_final_name(path, moment, cache):
    write_gguf(model_of("llama"), path)
    run = [sys.executable, "-c", CONVERT, str(path)]
    assert subprocess.run([*run, moment], capture_output=True).returncode == -signal.SIGKILL
    assert not [folder for folder in cache.glob("converted/*") if not folder.name.startswith(".")]
    record = convert_once(path, None)
    assert (converted_folder(record["sha256"]) / "model.safetensors").is_file()
    assert not list(cache.glob("converted/.*.unfinished"))


def test_a_conversion_that_does_not_fit_the_disk_is_refused_before_it_begins(path, cache, refuses, monkeypatch, capsys):
    model = model_of("llama", tie_word_embeddings=True)
    write_gguf(model, path)
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with refuses(f"takes {needed / 1e9:.1f} GB in {cache}", "set cache to a folder of a larger disk"):
        convert_once(path, None)
    assert not [folder for folder in cache.glob("converted/*") if folder.is_dir()]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    convert_once(path, None)
    assert f"takes {needed / 1e9:.1f} GB" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversion_is_what_transformers_makes_of_the_file(family, path, cache, monkeypatch):
    write_gguf(model_of(family), path, quantized=Kind.Q4_1)
    layerwise = converted(path)
    monkeypatch.setenv(VARIABLE, str(cache / "whole"))
    monkeypatch.setattr(conversion, "WeightConverter", object)  # as for models that only Transformers puts together
    whole = converted(path)
    assert whole != layerwise
    names = sorted(file.name for file in whole.iterdir())
    assert names == sorted(file.name for file in layerwise.iterdir())
    assert all((whole / name).read_bytes() == (layerwise / name).read_bytes() for name in names)


@pytest.mark.slow
def test_a_conversion_never_holds_the_whole_model(path, cache):
    """Peak memory of converting 24 layers grows by less than a quarter of what 20 more of them weigh."""
    peaks, bytes_of = [], []
    for layers in (4, 24):
        model = model_of("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=layers)
        bytes_of.append(4 * sum(parameter.numel() for parameter in model.parameters()))
        write_gguf(model, path.with_name(f"{layers}.gguf"))
        run = [sys.executable, "-c", PEAK, str(path.with_name(f"{layers}.gguf"))]
        peaks.append(int(subprocess.run(run, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < (bytes_of[1] - bytes_of[0]) / 4


@pytest.mark.slow
def test_two_studies_that_convert_at_once_convert_once(path):
    write_gguf(model_of("llama"), path)
    run = [sys.executable, "-c", CONVERT, str(path), "never"]
    both = [subprocess.Popen(run, stderr=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    said = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum("converted " in text for text in said) == 1


def test_a_job_says_what_to_do_where_the_conversion_is_gone(path, tmp_path, refuses):
    record = tmp_path / "record.json"
    record.write_text('{"sha256": "' + "1" * 64 + '", "quantization": "F32 x 3"}')
    spec = pinned({"source": str(path), "gguf": None}, [str(record)], tmp_path)
    with refuses("has not been converted on this machine", "--forcerun convert_model"):
        load_model(spec)


@pytest.mark.slow
def test_a_conversion_that_is_made_again_by_the_documented_line_captures_nothing_again(path, cache, tmp_path):
    write_gguf(model_of("llama"), path)
    study, scores = tmp_path / "study", "results/scores/model.csv"
    one_shard = {"capture": {}, "models": {"model": {"source": str(path)}}, "simulation": {}}
    write_study(study, SMALL | one_shard)
    assert snakemake(study, scores).returncode == 0
    shutil.rmtree(cache)
    (line,) = documented("models.md", "snakemake --cores 4 --forcerun convert_model")
    assert snakemake(study, *line).returncode == 0
    assert list(cache.glob("converted/*/model.safetensors"))
    assert planned(study, scores) == {}


@pytest.mark.slow
def test_two_lines_of_config_take_a_gguf_file_to_findings_and_explorer(tmp_path):
    """Another family, with windows, a SentencePiece vocabulary and BOS by its own rule."""
    source = tmp_path / "gemma.gguf"
    model = model_of("gemma3_text", vocab_size=420, max_position_embeddings=64)
    write_gguf(model, source, tokenizer=sentencepiece_tokenizer)
    grid = {"text": "text.txt", "lengths": [24], "policies": ["consistent"], "strategies": ["first_value"]}
    config = SMALL | {"models": {"gemma": {"source": str(source)}}, "simulation": {}, "capture": {}}
    config["benchmark"] = SMALL["benchmark"] | grid
    study = write_study(tmp_path / "study", config)
    (study / "text.txt").write_text("the cat sat on the sink of the world. " * 20)
    done = snakemake(study)
    assert done.returncode == 0, done.stderr
    findings = (study / "results/findings.md").read_text()
    assert "gemma" in findings
    assert "was cut to the model's context of 64" in findings  # a prompt longer than that is not refused
    assert (study / "results/explorer.html").stat().st_size > 0
    assert (study / "results/verification/gemma.csv").is_file()
    assert not [path for path in (study / "results").rglob("*.safetensors")]
