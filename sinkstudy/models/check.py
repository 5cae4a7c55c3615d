"""Whether a model's source can be a model, seen from its configuration and the disk: nothing is loaded or fetched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sinkstudy.errors import StudyError
from sinkstudy.models.checkpoint import check_checkpoint
from sinkstudy.models.sources import as_path, is_local


def check_source(name: str, model: Mapping[str, Any], root: Path) -> None:
    """Raise StudyError naming `models.NAME.KEY` where a local source (looked up from `root`) is not there or not whole.

    `model`: its settings, as `sinkstudy.workflow.settings.Model` fills them. What lies on the Hub or in a package index
    shows when it is fetched.
    """
    source, path = model["source"], root / as_path(model["source"])
    if source.endswith(".gguf"):
        if not path.is_file():
            raise StudyError(f"models.{name}.source is {source!r}, but there is no such file; give a GGUF file.")
        return
    if not is_local(source, root):
        for key in ("trust_remote_code", "allow_pickle"):
            if model[key]:
                raise StudyError(
                    f"models.{name}.{key} is for local directories only; download {source!r}, look at what it holds, "
                    "and give the path."
                )
        return
    if not path.is_dir():
        raise StudyError(
            f"models.{name}.source is {source!r}, but there is no such directory; give a directory in "
            "Hugging Face format or a Hub id like 'owner/name'."
        )
    if model["gguf"] is not None:
        if not (path / model["gguf"]).is_file():
            raise StudyError(f"models.{name}.gguf is {model['gguf']!r}, but there is no such file in {source!r}.")
        return
    try:
        check_checkpoint(path, weights=model["random_weights"] is None, pickled=model["allow_pickle"])
    except StudyError as error:
        raise StudyError(f"models.{name}.source: {error}") from None
