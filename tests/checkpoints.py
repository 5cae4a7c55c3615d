"""The smallest directory in Hugging Face format that passes as one, for tests that load no model."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SETTINGS = {"num_hidden_layers": 2}
TENSORS = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(2))]


def save_checkpoint(folder: Path, settings: dict = SETTINGS, tensors: Iterable[str] = TENSORS) -> Path:
    """Write configuration, tokenizer and weights; returns the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_text("{}")
    save_file({name: np.zeros(2) for name in tensors}, folder / "model.safetensors")
    return folder
