"""Running a model that is larger than memory: its decoder layers stay in the checkpoint and come in one at a time.

Weights are read from the checkpoint's own safetensors, one module's at a time. Only where Transformers has to convert
them beyond their type (experts that are stored apart, for example) does it load the checkpoint once, and writes copies
into a folder that goes with the process.
"""

import atexit
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from accelerate import dispatch_model, init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from sinkstudy.errors import StudyError
from sinkstudy.models.cache import cache_folder
from sinkstudy.models.check import stored_tensors
from sinkstudy.models.spec import ModelSpec

SHARE = 0.6  # a model whose weights would take more of the free memory than this is offloaded
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def offload_map(
    folder: Path, spec: ModelSpec, wanted: str, device: torch.device, memory: int | None
) -> dict[str, str] | None:
    """Where each part of the model goes, by module name, for Transformers' `device_map`; None to load all of it.

    `wanted`: always, never, or auto, which offloads where the weights take more than SHARE of what is free. `memory`:
    bytes that the job may use; None asks the machine. Raises StudyError where nothing may be offloaded and the weights
    do not fit.
    """
    model = _without_weights(folder, spec)
    needed = sum(parameter.numel() for parameter in model.parameters()) * getattr(torch, spec.dtype).itemsize
    free = free_memory() if memory is None else min(memory, free_memory())
    if wanted == "never" and device.type == "cpu" and needed > free:
        raise StudyError(
            f"{folder}: its weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free; set "
            "capture.offload to auto, which leaves the layers on disk and reads one at a time."
        )
    if wanted == "never" or (wanted == "auto" and needed <= SHARE * free):
        return None
    return dict(_places(model, str(device)))


def left_in_place(
    folder: Path, spec: ModelSpec, places: dict[str, str], device: torch.device
) -> PreTrainedModel | None:
    """The model, of which only what is not `disk` in `places` has been read; the rest comes in as modules run.

    None where the checkpoint's tensors are not the model's by name and shape, or Transformers converts them. Loading
    a checkpoint through Transformers maps all of its files until the end, and what was read of them counts as memory.
    """
    model, dtype = _without_weights(folder, spec), getattr(torch, spec.dtype)
    stored, tied, embedding = stored_tensors(folder), model.all_tied_weights_keys, model.get_input_embeddings()
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    converted = any(isinstance(one, WeightConverter) for one in get_model_conversion_mapping(model))
    fits = all(name in stored and stored[name].shape == tuple(tensor.shape) for name, tensor in own.items())
    if converted or not fits or model._get_dtype_plan(dtype):
        return None
    # The vocabulary projection stays on disk, even where it shares the embedding's weights: a capture never runs it.
    places = places | {name.rpartition(".")[0]: "disk" for name in tied}
    on_disk = tuple(f"{name}." for name, place in places.items() if place == "disk")
    buffers = {name for name, _ in model.named_buffers()}
    of_embedding = next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)
    index = {}
    for name in model.state_dict():
        stored_name = tied.get(name, name)
        file = stored[stored_name].file
        if name.startswith(on_disk) and name not in buffers:
            index[name] = {"safetensors_file": str(file), "weight_name": stored_name, "dtype": spec.dtype}
        elif name == of_embedding:
            _leave_rows(embedding, file, name, dtype, device)
        else:
            with safe_open(file, framework="pt") as weights:
                # A copy is made because a view would keep the whole file mapped.
                value = weights.get_tensor(name).to(device, dtype, copy=True)
            set_module_tensor_to_device(model, name, device, value=value)
    for name, buffer in model.named_buffers():
        if not name.startswith(on_disk):
            set_module_tensor_to_device(model, name, device, value=buffer)
    skipped = model._skip_keys_device_placement
    return dispatch_model(model, places, main_device=str(device), offload_index=index, skip_keys=skipped)


def _without_weights(folder: Path, spec: ModelSpec) -> PreTrainedModel:
    """The model with its buffers; its weights take no memory."""
    trust = {"trust_remote_code": spec.trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **trust)
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=spec.dtype, **trust)


def _leave_rows(embedding: nn.Module, file: Path, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Have `embedding` read, for each call, the rows of the tokens that it is given."""

    def bring(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        tokens, row = args[0].unique(return_inverse=True)
        with safe_open(file, framework="pt") as weights:
            hold(module, weights.get_tensor(name)[tokens.cpu()])
        return (row,)

    def hold(module: nn.Module, rows: Tensor) -> None:
        module.weight = nn.Parameter(rows.to(device, dtype), requires_grad=False)

    def release(module: nn.Module, *_: object) -> None:
        hold(module, torch.empty(0, module.embedding_dim))

    release(embedding)
    embedding.padding_idx = None  # The padding's place may lie beyond the rows at hand, and only gradients need it.
    embedding.register_forward_pre_hook(bring)
    embedding.register_forward_hook(release)


def is_offloaded(model: PreTrainedModel) -> bool:
    """Whether some of the model's weights come in only while a pass needs them."""
    return any(parameter.is_meta for parameter in model.parameters())


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, its control group, and its own limit."""
    limits = [psutil.virtual_memory().available]
    used = psutil.Process().memory_info()
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - used.vms)
    with suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        limits.append(int(_CGROUP.read_text()) - used.rss)
    return max(0, min(limits))


def copies_folder() -> Path:
    """A folder of this process for converted weights; it goes when the process ends, or when the next one starts."""
    parent = cache_folder() / "offload"
    for left in parent.glob("*"):
        if not (left.name.isdecimal() and psutil.pid_exists(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _places(model: PreTrainedModel, device: str) -> Iterator[tuple[str, str]]:
    """Modules and `disk` or `device`: the decoder layers, and the head unless it shares the embedding's weights."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    layers = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    yield from ((f"{layers}.{index}", "disk") for index in range(len(lists[layers])))
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    for name, module in model.named_modules():
        if name.startswith(f"{layers}."):
            continue
        # A place holds for all that is inside a module, so one around the layers gets none for its buffers (GPT-1).
        buffers = () if layers.startswith(f"{name}.") else module.buffers(recurse=False)
        if [*module.parameters(recurse=False), *buffers]:
            yield name, "disk" if module is head and not tied else device
