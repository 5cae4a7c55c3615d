"""The weights of a GGUF file, dequantized to float32 under Transformers' names, a layer at a time."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from sinkstudy.errors import StudyError
from sinkstudy.models.gguf_file import GGUFFile
from sinkstudy.models.loading import is_finite

_NO_WEIGHTS = {"rope_freqs.weight"}  # `gguf_config` turns this tensor into a setting of RoPE.
_LAYER = re.compile(r"blk\.(\d+)\.")


def layers_of(file: GGUFFile, model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """What `model`, without weights of its own, would be given: by name, float32, all of a layer together.

    Raises StudyError, at the latest when the last layer has been taken, where a tensor of the file has no place in the
    model, one of the model's is missing or of another shape, or a number is not finite.
    """
    from gguf import dequantize

    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    refuse(file, sorted(set(file.tensors) - set(names) - _NO_WEIGHTS), "have no place in Transformers' model")
    tied = set(model.all_tied_weights_keys)
    missing = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in tied}
    for _, tensors in groupby(sorted(file.tensors.values(), key=_layer), key=_layer):
        # The processor of a mixture of experts puts the experts of a layer together in this dictionary.
        part: dict[str, Tensor] = {}
        for tensor in tensors:
            weights = dequantize(_read(file, tensor), tensor.tensor_type)
            found = processor.process(
                weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": part}
            )
            if found.name in names:
                part[names[found.name]] = torch.from_numpy(np.ascontiguousarray(found.weights, dtype=np.float32))
        part = {name: weight for name, weight in part.items() if name not in tied}
        refuse(file, sorted(set(part) - set(missing)), "are unexpected")
        refuse(file, sorted(name for name in part if tuple(part[name].shape) != missing[name]), "are mismatched")
        refuse(file, sorted(name for name in part if not is_finite(part[name])), "hold numbers that are not finite")
        missing = {name: shape for name, shape in missing.items() if name not in part}
        yield part
    refuse(file, sorted(missing), "are missing")


def refuse(file: GGUFFile, names: list[str], what: str) -> None:
    """Raise StudyError where any tensors are named."""
    if names:
        raise StudyError(
            f"{file.path}: {len(names)} tensors {what} (first: {names[0]}); the file is incomplete, or of a kind that "
            "cannot be carried over exactly."
        )


def _layer(tensor: Any) -> int:
    found = _LAYER.match(tensor.name)
    return int(found[1]) if found else -1


def _read(file: GGUFFile, tensor: Any) -> np.ndarray:
    """A tensor's blocks: read, since what is looked at in a mapped file counts as memory until the file is closed."""
    stored = tensor.data
    return np.fromfile(file.path, stored.dtype, stored.size, offset=int(tensor.data_offset)).reshape(stored.shape)
