"""Setting the attention implementation of a model for the time of a block, and putting it back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from transformers import PreTrainedConfig, PreTrainedModel

from sinkstudy.errors import StudyError

_released = threading.Condition()
# The blocks a model is in, outermost first: the thread of each, and what nothing else may go together with.
_blocks: "WeakKeyDictionary[PreTrainedModel, list[tuple[int, str | None]]]" = WeakKeyDictionary()


def uses_attention_interface(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be exchanged. Raises StudyError for what is no model of Transformers."""
    if not hasattr(model, "_can_set_attn_implementation"):
        raise StudyError(f"{type(model).__name__} is no Transformers model; give the PreTrainedModel that it holds.")
    return model._can_set_attn_implementation()


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str, exclusive: str | None = None) -> Iterator[None]:
    """The model with attention `name` inside the block, restored exactly after it, its sub-models' too.

    A model that computes attention by itself is told to do so eagerly. One thread at a time: another waits until the
    block is left. `exclusive` says what the model does in the block, such as "runs under a plan", where nothing else
    may set its attention meanwhile: any further block then raises StudyError, in every thread.
    """
    exchangeable = uses_attention_interface(model)
    with _alone(model, exclusive):
        before = _implementations(model.config)
        try:
            if exchangeable:
                model.set_attn_implementation(name)
            else:
                # Their layers compute the weights, but the mask is made for what the configuration says: SDPA's may
                # be left out, as the kernel is causal by itself.
                model.config._attn_implementation = "eager"
            yield
        finally:
            if exchangeable:
                model.set_attn_implementation(before)
            else:
                model.config._attn_implementation = before[""]


def _implementations(config: PreTrainedConfig) -> dict:
    """In the form that `set_attn_implementation` takes: the configuration's own, and those of its parts."""
    parts = {key: part for key in config.sub_configs if (part := getattr(config, key, None)) is not None}
    return {"": config._attn_implementation} | {key: _implementations(part) for key, part in parts.items()}


@contextmanager
def _alone(model: PreTrainedModel, exclusive: str | None) -> Iterator[None]:
    thread = threading.get_ident()
    with _released:
        while blocks := _blocks.get(model):
            holder, doing = blocks[-1]
            if doing is not None:
                raise StudyError(f"this model already {doing}; leave that block first.")
            if holder == thread:
                break
            _released.wait()
        _blocks.setdefault(model, []).append((thread, exclusive))
    try:
        yield
    finally:
        with _released:
            _blocks[model].pop()
            _released.notify_all()
