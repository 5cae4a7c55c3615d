"""A fingerprint of the code a script really uses: itself and every module of this project it reaches by import, with
the data files (templates, styles, tables) of the reached packages, and the versions of the libraries whose arithmetic
it uses.

Only what can change a result counts: no comment, docstring or layout, and no text that an exception or a message says.
The same code has the same fingerprint under every Python.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = "sinkstudy"
_ARITHMETIC = ("torch", "transformers")
_BYTECODE = "__pycache__"
_SPEAKING = {"print", "warn", "debug", "info", "warning", "error", "exception", "critical"}
# These fields of a syntax tree say nothing, or differ between versions of Python.
_IGNORED = {"ctx", "kind", "type_comment", "type_ignores"}


@cache
def fingerprint(script: Path, root: Path) -> str:
    """Hex digest over `script`, all that it reaches below `root`, and the versions behind its numbers."""
    reached = reached_files(script, root)
    whole = hashlib.sha256()
    for path in reached:
        whole.update(path.relative_to(root).as_posix().encode())
        whole.update(_meaning(path))
    names = {name.split(".")[0] for path in reached if path.suffix == ".py" for name in _imports(path, root)}
    if names & set(_ARITHMETIC):
        whole.update(repr([_version(library) for library in _ARITHMETIC]).encode())
    return whole.hexdigest()[:16]


@cache
def reached_files(script: Path, root: Path) -> tuple[Path, ...]:
    """`script`, the modules below `root` that it imports, directly or not, and the data files of their packages."""
    reached, waiting = {script}, [script]
    while waiting:
        names = _imports(waiting.pop(), root)
        found = {file for name in names for file in _modules(name, root)} - reached
        reached |= found
        waiting += found
    for module in list(reached):
        if module.name == "__init__.py":
            reached.update(_data(module.parent))
    return tuple(sorted(reached, key=lambda path: path.relative_to(root).as_posix()))


def _version(library: str) -> str:
    try:
        return version(library).split("+")[0]  # a local label such as +cpu names a build of the same code
    except PackageNotFoundError:
        return "none"


@cache
def _imports(path: Path, root: Path) -> frozenset[str]:
    """Dotted names of what a module imports, wherever it does; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import counts its dots from the module's own folder.
            above = path.relative_to(root).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def _modules(name: str, root: Path) -> tuple[Path, ...]:
    """The files that importing a.b.c runs: a/__init__ and a/b/__init__ too."""
    parts = name.split(".")
    if parts[0] != _PACKAGE:
        return ()
    base = root.joinpath(*parts)
    here = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return (*_modules(name.rpartition(".")[0], root), *here)


def _data(package: Path) -> Iterator[Path]:
    """Files of a package that are no code, also in folders that are no packages of their own."""
    for path in package.iterdir():
        if path.name.startswith(".") or path.name.endswith("~") or path.name == _BYTECODE:
            continue
        if path.is_dir():
            yield from () if (path / "__init__.py").exists() else _data(path)
        elif path.suffix not in (".py", ".pyc"):
            yield path


@cache
def _meaning(path: Path) -> bytes:
    if path.suffix != ".py":
        return path.read_bytes()
    parts: list[str] = []
    _spell(_tree(path), False, parts)
    return "".join(parts).encode("utf-8", "surrogatepass")


def _spell(node: object, spoken: bool, parts: list[str]) -> None:
    """Add a syntax tree as text: names of nodes, and of fields that hold something, in alphabetical order.

    `spoken`: within what an exception or a message says, where text does not count.
    """
    if isinstance(node, list):
        parts.append("[")
        for item in node:
            _spell(item, spoken, parts)
        parts.append("]")
    elif not isinstance(node, ast.AST):
        text = str(node)
        parts.append(f"{type(node).__name__} {len(text)} {text};")
    elif spoken and (isinstance(node, ast.JoinedStr) or _is_text(node)):
        parts.append("text;")
    else:
        parts.append(f"{type(node).__name__}(")
        for field, value in sorted(ast.iter_fields(node)):
            if field == "body" and _begins_with_docstring(node, value):
                value = value[1:]
            if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty texts to some
                value = [part for part in value if not (_is_text(part) and part.value == "")]
            if field not in _IGNORED and (value or isinstance(node, ast.Constant)):
                parts.append(f"{field}=")
                _spell(value, spoken or _speaks(node, field), parts)
        parts.append(")")


def _speaks(node: ast.AST, field: str) -> bool:
    if isinstance(node, ast.Raise):
        return True
    called = getattr(node, "func", None)
    return field in ("args", "keywords") and getattr(called, "attr", getattr(called, "id", None)) in _SPEAKING


def _begins_with_docstring(node: ast.AST, body: list) -> bool:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return documented and bool(body) and isinstance(body[0], ast.Expr) and _is_text(body[0].value)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
