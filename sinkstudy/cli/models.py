"""Which model a command means: one of the configuration here, or a source with its settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sinkstudy.errors import StudyError
from sinkstudy.models.loading import LoadedModel
from sinkstudy.models.obtain import obtain
from sinkstudy.workflow.config import check_model
from sinkstudy.workflow.files import check_yaml

CONFIG = Path("config.yaml")


def model_of(named: str | None, given: Mapping[str, Any]) -> tuple[str, LoadedModel]:
    """What to call the model, and the model.

    `named`: a name in ./config.yaml, or a source; None is the first of ./config.yaml. `given`: settings that go over
    those of the configuration, but for those that are None. Raises StudyError where there is no such model, and as
    loading it does.
    """
    configured: Mapping[str, Any] = {}
    if CONFIG.is_file():
        check_yaml([CONFIG])
        configured = yaml.safe_load(CONFIG.read_text(encoding="utf-8-sig")).get("models") or {}
    if named is None and not configured:
        raise StudyError("there is no config.yaml here that names a model; give one with --model.")
    name = next(iter(configured)) if named is None else named
    label = name if name in configured else "model"
    over = {key: value for key, value in given.items() if value is not None}
    settings = check_model(label, {**configured.get(name, {"source": name}), **over})
    return name, obtain(label, settings, Path.cwd())
