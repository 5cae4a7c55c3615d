"""What a run finds on disk before it reads its configuration: files that are YAML, folders that take results."""

import os
from collections.abc import Iterable
from pathlib import Path

import yaml

from sinkstudy.errors import StudyError


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
        _check_keys(path, node)


def _check_keys(path: Path, top: yaml.Node) -> None:
    """Every mapping names a key once, and no alias leads back to a node that holds it."""
    checked = set()

    def check(node: yaml.Node, above: frozenset[int]) -> None:
        line = node.start_mark.line + 1
        if id(node) in above:
            raise StudyError(f"{path}: line {line}: what an anchor (&) names here holds itself; write it out.")
        if id(node) in checked or isinstance(node, yaml.ScalarNode):
            return
        checked.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
        seen = set()
        for key, value in pairs:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise StudyError(f"{path}: line {line}: the key {key.value!r} is here for the second time; remove one.")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            check(value, above | {id(node)})

    check(top, frozenset())


def check_folders(paths: Iterable[Path], writable: bool = False) -> None:
    """Raise StudyError naming a folder for results that is none or, where asked, that cannot be written."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise StudyError(
                f"{path}: is a link to {path.readlink()}, which is not there; make it, or remove the link."
            )
        if path.exists() and not path.is_dir():
            raise StudyError(f"{path}: is not a directory; rename it, results go into a directory of that name.")
        if writable and path.is_dir() and not os.access(path, os.W_OK):
            raise StudyError(f"{path}: cannot be written (permissions, or a read-only file system); mend that first.")
