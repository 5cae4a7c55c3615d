"""Whether a model's source can be a model, seen from its configuration and the disk: nothing is loaded or fetched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinkstudy.errors import StudyError
from sinkstudy.models.checkpoint import check_checkpoint
from sinkstudy.models.gguf_file import check_header
from sinkstudy.models.sources import as_path
from sinkstudy.models.spec import is_gguf, is_remote


def check_source(name: str, model: Mapping[str, Any], root: Path) -> None:
    """Raise StudyError naming `models.NAME.KEY` where a local source (looked up from `root`) is not there or not whole.

    `model`: its settings, as `sinkstudy.workflow.settings.Model` fills them. What lies on the Hub or in a package index
    shows when it is fetched, what a GGUF file lacks when it is converted.
    """
    if is_remote(model, root):
        _check_remote(name, model)
        return
    source, path = model["source"], root / as_path(model["source"])
    if not source.endswith(".gguf") and not path.is_dir():
        raise StudyError(
            f"models.{name}.source is {source!r}, but there is no such directory; give a directory in Hugging Face "
            "format, a .gguf file, or a Hub id like 'owner/name'."
        )
    key, file = ("gguf", path / model["gguf"]) if model["gguf"] else ("source", path)
    try:
        if not is_gguf(model):
            check_checkpoint(path, weights=model["random_weights"] is None, pickled=model["allow_pickle"])
        elif file.is_file():
            check_header(file)
        else:
            raise StudyError(f"{file} is no file; give the path of an existing GGUF file.")
    except StudyError as error:
        raise StudyError(f"models.{name}.{key}: {error}") from None


def _check_remote(name: str, model: Mapping[str, Any]) -> None:
    for key in ("trust_remote_code", "allow_pickle"):
        if model[key]:
            raise StudyError(
                f"models.{name}.{key} is for local directories only; download {model['source']!r}, look at what it "
                "holds, and give the path."
            )
