"""Checking a configuration against its JSON schema, with sentences a person can act on."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError, best_match

from sinkstudy.errors import StudyError
from sinkstudy.models.checkpoint import check_checkpoint
from sinkstudy.models.sources import as_path, is_local


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema counts 100.0 as an integer and lets NaN through; code that counts and compares cannot.
_Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer}),
)


def check_config(config: Mapping[str, Any], schema_path: Path, root: Path, name: str = "config.yaml") -> dict[str, Any]:
    """Return `config`, read from the file `name`, with the schema's defaults filled in.

    Raises StudyError naming the offending key when the schema refuses the configuration, when a model's local
    directory (looked up from `root`) does not exist, when a simulation is fitted to a model that is not there, or
    when `prompts` or the benchmark text is not a file.
    """
    try:
        return _checked(config, yaml.safe_load(schema_path.read_text(encoding="utf-8")), root)
    except StudyError as error:
        raise StudyError(f"{name}: {error}") from None


def _checked(config: Mapping[str, Any], schema: Mapping[str, Any], root: Path) -> dict[str, Any]:
    filled = _with_defaults(config, schema, schema)
    error = best_match(_Validator(schema).iter_errors(filled))
    if error is not None:
        raise StudyError(_sentence(error))
    for name, model in filled["models"].items():
        _check_source(name, model, root)
    for name, preset in filled["simulation"].items():
        if preset.get("fitted_to", next(iter(filled["models"]))) not in filled["models"]:
            raise StudyError(
                f"simulation.{name}.fitted_to is {preset['fitted_to']!r}, which is not among models "
                f"({', '.join(filled['models'])}); name one of them."
            )
    for key, file in (("prompts", filled["prompts"]), ("benchmark.text", filled["benchmark"]["text"])):
        if not (root / file).is_file():
            raise StudyError(f"{key} is {file!r}, which is not a file; name an existing one.")
    if filled["sinks"]["threshold"] not in filled["sinks"]["thresholds"]:
        raise StudyError(
            f"sinks.threshold {filled['sinks']['threshold']} is not among sinks.thresholds "
            f"{filled['sinks']['thresholds']}; add it there, since the tables cover those."
        )
    return filled


def check_yaml(paths: Iterable[Path]) -> None:
    """Raise StudyError naming file and line where a configuration file is no YAML mapping, or repeats a key.

    Of a repeated key YAML keeps the last value in silence. The first path may be missing when others are given.
    """
    first, *others = paths
    if not first.is_file() and not others:
        raise StudyError(f"{first}: there is no such file; run in the folder of the study, or give --configfile.")
    for path in filter(Path.is_file, (first, *others)):
        try:
            node = yaml.compose(path.read_bytes().decode("utf-8-sig"), yaml.SafeLoader)
        except UnicodeDecodeError:
            raise StudyError(f"{path}: is not valid UTF-8; save the file as UTF-8.") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
            problem = getattr(error, "problem", None) or getattr(error, "reason", "cannot be read")
            raise StudyError(f"{path}: {where}this is not YAML ({problem}).") from None
        if not isinstance(node, yaml.MappingNode):
            raise StudyError(f"{path}: must hold keys and values, such as 'prompts: prompts.tsv'.")
        _check_repeated(path, node)


def _check_repeated(path: Path, top: yaml.Node) -> None:
    waiting, visited = [top], set()  # an alias may lead back to a node that holds it
    while waiting:
        node = waiting.pop()
        if id(node) in visited or isinstance(node, yaml.ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        seen = set()
        for key, value in node.value:
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise StudyError(f"{path}: line {line}: the key {key.value!r} is here for the second time; remove one.")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)


def check_folders(paths: Iterable[Path], writable: bool = False) -> None:
    """Raise StudyError naming a folder for results that is none or, where asked, that cannot be written."""
    for path in paths:
        if path.exists() and not path.is_dir():
            raise StudyError(f"{path}: is not a directory; rename it, results go into a directory of that name.")
        if writable and path.is_dir() and not os.access(path, os.W_OK):
            raise StudyError(f"{path}: cannot be written (permissions, or a read-only file system); mend that first.")


def _check_source(name: str, model: Mapping[str, Any], root: Path) -> None:
    source = model["source"]
    if not is_local(source, root):
        for key in ("trust_remote_code", "allow_pickle"):
            if model[key]:
                raise StudyError(
                    f"models.{name}.{key} is for local directories only; download {source!r}, look at what it holds, "
                    "and give the path."
                )
        return
    path = root / as_path(source)
    if not path.is_dir():
        raise StudyError(
            f"models.{name}.source is {source!r}, but there is no such directory; give a directory in "
            "Hugging Face format or a Hub id like 'owner/name'."
        )
    try:
        check_checkpoint(path, weights=model["random_weights"] is None, pickled=model["allow_pickle"])
    except StudyError as error:
        raise StudyError(f"models.{name}.source: {error}") from None


def _with_defaults(value: Any, schema: Mapping[str, Any], top: Mapping[str, Any]) -> Any:
    """Fill the `default`s of `properties`, following `$ref` into the schema's own definitions."""
    if "$ref" in schema:
        schema = top["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if not isinstance(value, Mapping):
        return value
    properties = schema.get("properties", {})
    filled = {key: part["default"] for key, part in properties.items() if "default" in part}
    filled |= value
    others = schema.get("additionalProperties")
    for key in filled:
        part = properties.get(key, others)
        if isinstance(part, Mapping):
            filled[key] = _with_defaults(filled[key], part, top)
    return filled


def _sentence(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    named = where or "the configuration"
    rule, found = error.validator, error.instance
    if "propertyNames" in error.absolute_schema_path:
        rest = "a name may hold letters, digits, '.', '_' and '-', and starts with a letter or digit."
        return f"{named}: {found!r} is not a usable name; {rest}"
    if rule == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = ", ".join(repr(str(key)) for key in found if key not in known)
        place = f" in {where}" if where else ""
        return f"unknown key {unknown}{place}; known keys are {', '.join(known)}."
    if rule == "required":
        missing = ", ".join(repr(key) for key in error.validator_value if key not in found)
        return f"{named} lacks {missing}."
    if rule == "type":
        wanted = error.validator_value
        wanted = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return f"{named} is {found!r}, but must be of type {wanted}."
    if rule == "enum":
        return f"{named} is {found!r}, but must be one of {', '.join(map(str, error.validator_value))}."
    if "maximum" in error.schema or "minimum" in error.schema or "exclusiveMinimum" in error.schema:
        return f"{named} is {found!r}, but must be {_bounds(error.schema)}."
    if rule in ("minItems", "minProperties"):
        return f"{named} is empty, but must name at least one."
    return f"{named}: {error.message}."


def _bounds(schema: Mapping[str, Any]) -> str:
    parts = []
    if "exclusiveMinimum" in schema:
        parts.append(f"greater than {schema['exclusiveMinimum']}")
    if "minimum" in schema:
        parts.append(f"at least {schema['minimum']}")
    if "maximum" in schema:
        parts.append(f"at most {schema['maximum']}")
    return " and ".join(parts)


def control_pairs(models: dict[str, dict]) -> list[tuple[str, str]]:
    """(model, control) names: a control is the same source and revision with random weights."""

    def source(settings: dict) -> tuple:
        return settings["source"], settings.get("revision")

    controls = {source(s): name for name, s in sorted(models.items()) if s.get("random_weights") is not None}
    trained = [(name, source(s)) for name, s in sorted(models.items()) if s.get("random_weights") is None]
    return [(name, controls[where]) for name, where in trained if where in controls]
