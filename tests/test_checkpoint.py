"""What makes a model's directory unfit, found before any job loads it."""

import json
from pathlib import Path

import pytest
from checkpoints import SETTINGS, TENSORS, save_checkpoint

from sinkstudy.models.check import check_checkpoint


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_checkpoint(tmp_path / "model")


def split(folder: Path, weight_map: object, name: str = "model-00001-of-00001.safetensors") -> None:
    """Rename the weights, and write an index."""
    (folder / "model.safetensors").rename(folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_whole_checkpoint_passes_in_one_file_or_several(folder):
    check_checkpoint(folder)
    split(folder, dict.fromkeys(TENSORS, "model-00001-of-00001.safetensors"))
    check_checkpoint(folder)


def test_a_model_of_random_weights_needs_none(folder):
    (folder / "model.safetensors").unlink()
    check_checkpoint(folder, weights=False)


BROKEN = {
    "no configuration": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "broken configuration": (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
    "no object": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "JSON object"]),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["*.safetensors"]),
}


@pytest.mark.parametrize("change", BROKEN)
def test_what_is_missing_or_broken_is_named(folder, refuses, change):
    break_it, mentions = BROKEN[change]
    break_it(folder)
    with refuses(str(folder), *mentions):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    "alter",
    [lambda b: b[:-9], lambda b: b[:100], lambda b: b"", lambda b: b + b"\0", lambda b: b"\xff" * 50],
    ids=["end gone", "header cut", "empty", "longer", "foreign"],
)
def test_weights_that_are_not_whole_are_refused(folder, refuses, alter):
    weights = folder / "model.safetensors"
    weights.write_bytes(alter(weights.read_bytes()))
    with refuses(str(weights), "cut short"):
        check_checkpoint(folder)


@pytest.mark.parametrize("weight_map", [None, [], ["a"], {}, "model.safetensors"])
def test_an_index_without_a_map_is_refused(folder, refuses, weight_map):
    split(folder, weight_map)
    with refuses("model.safetensors.index.json", "weight_map"):
        check_checkpoint(folder)


@pytest.mark.parametrize("inside", ["../outside.safetensors", "{absolute}", "sub/x.safetensors", "..", "weights.bin"])
def test_an_index_may_only_name_files_beside_it(folder, refuses, inside):
    """Others would decide numbers without being among the job's inputs or in the digest of the model."""
    for place in (folder.parent / "outside.safetensors", folder / "sub/x.safetensors", folder / "weights.bin"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((folder / "model.safetensors").read_bytes())
    name = inside.format(absolute=folder.parent / "outside.safetensors")
    split(folder, dict.fromkeys(TENSORS, name))
    with refuses("model.safetensors.index.json", repr(name)):
        check_checkpoint(folder)


def test_a_file_that_the_index_names_must_be_there(folder, refuses):
    split(folder, {TENSORS[0]: "model-00001-of-00001.safetensors", TENSORS[1]: "model-00002-of-00002.safetensors"})
    with refuses("model-00002-of-00002.safetensors", "missing"):
        check_checkpoint(folder)


@pytest.mark.parametrize("prefix", ["model.layers", "layers", "transformer.h", "model.language_model.layers"])
def test_more_layers_than_the_configuration_names_are_refused(tmp_path, refuses, prefix):
    tensors = [f"{prefix}.{i}.mlp.weight" for i in range(12)]
    key = {"transformer.h": "n_layer"}.get(prefix, "num_hidden_layers")
    with refuses("weights of 12 layers", "names 11"):
        check_checkpoint(save_checkpoint(tmp_path / "shallow", {key: 11}, tensors))
    check_checkpoint(save_checkpoint(tmp_path / "whole", {key: 12}, tensors))
    check_checkpoint(save_checkpoint(tmp_path / "unsaid", {}, tensors))


def test_layers_of_an_image_encoder_and_of_further_predictions_are_no_layers_too_many(tmp_path):
    tensors = [*TENSORS, *(f"vision_tower.encoder.layers.{i}.mlp.weight" for i in range(27))]
    inner = {"text_config": SETTINGS, "num_hidden_layers": 27}
    check_checkpoint(save_checkpoint(tmp_path / "images", inner, tensors))
    tensors = [*TENSORS, "model.layers.2.mlp.up_proj.weight"]
    check_checkpoint(save_checkpoint(tmp_path / "further", SETTINGS | {"num_nextn_predict_layers": 1}, tensors))


@pytest.mark.parametrize("key", ["num_attention_heads", "num_hidden_layers", "num_key_value_heads", "n_head"])
def test_a_count_of_zero_is_named(tmp_path, refuses, key):
    folder = save_checkpoint(tmp_path / "none", SETTINGS | {key: 0})
    for weights in (True, False):
        with refuses("config.json", f"{key} is 0", "at least 1"):
            check_checkpoint(folder, weights=weights)
