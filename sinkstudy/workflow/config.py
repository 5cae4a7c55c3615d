"""Checking a configuration: against its settings, and against the files that it names."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sinkstudy.errors import StudyError
from sinkstudy.models.check import check_source
from sinkstudy.workflow.settings import Settings, UnfitError

COMMAND_LINE = "--config"
_REPLACED = ("models", "simulation")
_TYPES = {
    "array": "a list of at least one value",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "a mapping of keys to values",
    "string": "a string",
}
_BOUNDS = {"exclusiveMinimum": "greater than", "minimum": "at least", "maximum": "at most"}
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100
Layer = tuple[str, Mapping[str, Any]]


def replaced_by_overlays(
    config: Mapping[str, Any], overlays: Sequence[Mapping[str, Any]], command_line: Mapping[str, Any]
) -> dict[str, Any]:
    """`config` with the `models` and `simulation` of the last overlay that has them, in place of a union with others'.

    `overlays`: what each file given with --configfile holds, in order. `command_line`: what --config gives; it is laid
    over the result, as Snakemake does it.
    """
    replaced = dict(config)
    for overlay in overlays:
        replaced |= {key: overlay[key] for key in _REPLACED if key in overlay}
    return joined(replaced, command_line)


def typed(value: Any) -> Any:
    """What --config gives for a key, read as YAML: Snakemake leaves all that is nested as text."""
    if isinstance(value, str):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    if isinstance(value, Mapping):
        return {key: typed(one) for key, one in value.items()}
    return [typed(one) for one in value] if isinstance(value, list) else value


def check_config(config: Mapping[str, Any], root: Path, layers: Sequence[Layer] = ()) -> dict[str, Any]:
    """Return `config` with defaults filled in.

    `layers`: name and content of everything that `config` was put together from, strongest first; a sentence names the
    one that holds the key at fault.

    Raises StudyError where the settings refuse it, where a model's source (looked up from `root`) cannot be a model,
    or where `prompts` or the benchmark text is no file.
    """
    layers = layers or [("config.yaml", config)]

    def refused(path: tuple, why: object) -> StudyError:
        return StudyError(f"{_origin(path, layers)}: {why}")

    try:
        checked = Settings.model_validate(dict(config)).model_dump()
    except ValidationError as error:
        raise refused(*_first(error)) from None
    for name, model in checked["models"].items():
        try:
            check_source(name, model, root)
        except StudyError as error:
            raise refused(("models", name, "source"), error) from None
    for path, file in ((("prompts",), checked["prompts"]), (("benchmark", "text"), checked["benchmark"]["text"])):
        if not (root / file).is_file():
            raise refused(path, f"{'.'.join(path)} is {file!r}, which is not a file; name an existing one.")
    return checked


def check_model(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one model with defaults filled in. Raises StudyError naming `models.NAME` and the bad key."""
    try:
        checked = Settings.model_validate({"models": {name: dict(settings)}, "prompts": "unread"})
    except ValidationError as error:
        raise StudyError(_first(error)[1]) from None
    return checked.model_dump()["models"][name]


def joined(under: Any, over: Any) -> Any:
    """`over` laid over `under` as Snakemake does it: mappings key by key, anything else replaced."""
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    return {**under, **{key: joined(under.get(key, {}), value) for key, value in over.items()}}


def _origin(path: tuple, layers: Sequence[Layer]) -> str:
    """The name of the strongest layer that holds the key at `path`; all files where none does."""
    everywhere = " and ".join(dict.fromkeys(name for name, _ in layers if name != COMMAND_LINE))
    holding = (name for name, content in layers if path and _holds(content, path))
    return next(holding, everywhere)


def _holds(content: Any, path: tuple) -> bool:
    """Whether the key at `path` is there, or a list or a value where a section on the way to it belongs."""
    if not path or not isinstance(content, Mapping):
        return True
    return path[0] in content and _holds(content[path[0]], path[1:])


def _first(error: ValidationError) -> tuple[tuple, str]:
    """The path of the key that is most likely at fault, and a sentence about it."""
    # A misspelt key is an unknown one and a missing one; what a name should be comes before what is under it.
    rank = {"extra_forbidden": 0, "missing": 2}
    first = min(error.errors(), key=lambda one: -1 if one["loc"][-1:] == ("[key]",) else rank.get(one["type"], 1))
    kind, path, found = first["type"], first["loc"], first["input"]
    beside = [one["loc"] for one in error.errors() if one["type"] == kind and one["loc"][:-1] == path[:-1]]
    if path[-1:] == ("[key]",):
        return path[:-1], (
            f"{path[0]}: {_shown.repr(found)} is not a usable name; a name holds letters, digits, '.', '_' and '-', "
            "starts with a letter or digit, and has at most 64 characters."
        )
    if kind == "extra_forbidden":
        unknown, place = ", ".join(_shown.repr(str(loc[-1])) for loc in beside), ".".join(path[:-1])
        known = ", ".join(_schema(path[:-1])["properties"])
        return path, f"unknown key {unknown}{place and f' in {place}'}; known keys are {known}."
    if kind == "missing":
        place = ".".join(path[:-1]) or "the configuration"
        return path[:-1], f"{place} lacks {', '.join(repr(loc[-1]) for loc in beside)}."
    if kind == "value_error":
        unfit: UnfitError = first["ctx"]["error"]
        path += unfit.key
        return path, f"{'.'.join(map(str, path))} {unfit.why}"
    named = ".".join(map(str, path)) or "the configuration"
    if kind == "too_short":
        return path, f"{named} is empty, but must name at least one."
    return path, f"{named} is {_shown.repr(found)}, but must be {', or '.join(_wanted(_schema(path)))}."


def _schema(path: tuple) -> dict[str, Any]:
    """What the published schema says about the key at `path`."""
    part = whole = Settings.model_json_schema()
    for step in path:
        if "properties" in part:
            part = part["properties"][step]
        elif "patternProperties" in part:
            (part,) = part["patternProperties"].values()
        else:
            part = part["items"]
        if "$ref" in part:
            part = whole["$defs"][part["$ref"].rsplit("/", 1)[-1]]
    return part


def _wanted(part: dict[str, Any]) -> Iterator[str]:
    """What a value may be, in words: one phrase for each alternative."""
    for one in part.get("anyOf", [part]):
        if "enum" in one:
            yield f"one of {', '.join(one['enum'])}"
            continue
        bounds = " and ".join(f"{words} {one[bound]}" for bound, words in _BOUNDS.items() if bound in one)
        yield _TYPES[one["type"]] + (" that is not empty" if "minLength" in one else "") + (bounds and f", {bounds}")


def control_pairs(models: dict[str, dict]) -> list[tuple[str, str]]:
    """(model, control) names: a control is the same source, file and revision with random weights."""

    def source(settings: dict) -> tuple:
        return settings["source"], settings.get("gguf"), settings.get("revision")

    controls = {source(s): name for name, s in sorted(models.items()) if s.get("random_weights") is not None}
    trained = [(name, source(s)) for name, s in sorted(models.items()) if s.get("random_weights") is None]
    return [(name, controls[where]) for name, where in trained if where in controls]
