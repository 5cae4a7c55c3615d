"""A fingerprint of the code a script really uses: itself and every module of this project it reaches by import, with
the page templates, styles and browser scripts that lie in the reached packages.

Comments, docstrings and layout do not count, so only an edit that can change a result changes the fingerprint.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = "sinkstudy"
_PAGE_PARTS = {".css", ".html", ".js"}


@cache
def fingerprint(script: Path, root: Path) -> str:
    """Hex digest over `script` and the modules below `root` that it imports, directly or not."""
    reached = {script}
    waiting = [script]
    while waiting:
        for found in _imported(waiting.pop(), root) - reached:
            reached.add(found)
            waiting.append(found)
    packages = [path.parent for path in reached if path.name == "__init__.py"]
    reached |= {file for folder in packages for file in folder.iterdir() if file.suffix in _PAGE_PARTS}
    whole = hashlib.sha256()
    for path in sorted(reached, key=lambda p: p.relative_to(root).as_posix()):
        whole.update(path.relative_to(root).as_posix().encode())
        whole.update(_meaning(path).encode())
    return whole.hexdigest()[:16]


@cache
def _imported(path: Path, root: Path) -> frozenset[Path]:
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A relative import counts its dots from the module's own folder.
            above = path.relative_to(root).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    files = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == _PACKAGE:
            # Importing a.b.c runs a/__init__ and a/b/__init__ too.
            for depth in range(1, len(parts) + 1):
                base = root.joinpath(*parts[:depth])
                files |= {p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()}
    return frozenset(files)


@cache
def _meaning(path: Path) -> str:
    if path.suffix in _PAGE_PARTS:
        return path.read_text(encoding="utf-8")
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return ast.dump(tree)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
