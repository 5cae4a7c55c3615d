"""What of the code decides a result, and what does not."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sinkstudy.workflow.fingerprint import fingerprint, reached_files

ROOT = Path(__file__).parents[1]
SCRIPT = "workflow/scripts/job.py"
INNER = "sinkstudy/deep/inner.py"
TREE = {
    SCRIPT: "from sinkstudy.direct import work\n\nwork(1)\n",
    "sinkstudy/__init__.py": '"""A package."""\n',
    "sinkstudy/direct.py": "from sinkstudy.deep.inner import double\n\n\ndef work(x):\n    return double(x)\n",
    "sinkstudy/deep/__init__.py": "",
    INNER: 'def double(x):\n    """Twice x."""\n    return 2 * x\n',
    "sinkstudy/deep/sibling.py": "VALUE = 1\n",
    "sinkstudy/deep/page.html": "<p>One</p>\n",
    "sinkstudy/deep/templates/lengths.md.jinja": "One {{ n }}\n",
    "sinkstudy/deep/.hidden": "",
    "sinkstudy/deep/__pycache__/inner.cpython-311.pyc": "",
    "sinkstudy/deep/own/__init__.py": "",
    "sinkstudy/deep/own/table.tsv": "a\tb\n",
    "sinkstudy/apart/page.html": "<p>One</p>\n",
    "sinkstudy/unrelated.py": "VALUE = 1\n",
    "workflow/scripts/other.py": "VALUE = 1\n",
}
REACHED = {SCRIPT, "sinkstudy/__init__.py", "sinkstudy/direct.py", "sinkstudy/deep/__init__.py", INNER}
DATA = {"sinkstudy/deep/page.html", "sinkstudy/deep/templates/lengths.md.jinja", "sinkstudy/apart/page.html"}


@pytest.fixture
def project(tmp_path):
    """The root of the small project with these files edited; every call builds a tree of its own."""
    trees = 0

    def of(edits: dict[str, str]) -> Path:
        nonlocal trees
        trees += 1
        root = tmp_path / str(trees)
        for name, content in (TREE | edits).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, encoding="utf-8")
        return root

    return of


@pytest.fixture
def fingerprint_of(project):
    def of(edits: dict[str, str]) -> str:
        root = project(edits)
        return fingerprint(root / SCRIPT, root)

    return of


def names(files: tuple[Path, ...], root: Path) -> set[str]:
    return {file.relative_to(root).as_posix() for file in files}


def test_a_script_reaches_what_it_imports_and_the_data_of_their_packages(project):
    root = project({})
    assert names(reached_files(root / SCRIPT, root), root) == REACHED | DATA


@pytest.mark.parametrize("file", sorted(REACHED | DATA))
def test_every_reached_file_counts(fingerprint_of, file):
    assert fingerprint_of({file: TREE[file] + "added = 1\n"}) != fingerprint_of({})


@pytest.mark.parametrize("file", sorted(TREE.keys() - REACHED - DATA))
def test_no_other_file_counts(fingerprint_of, file):
    assert fingerprint_of({file: "VALUE = 2\n"}) == fingerprint_of({})


def test_a_fingerprint_does_not_depend_on_where_the_project_lies(fingerprint_of):
    assert fingerprint_of({}) == fingerprint_of({})


@pytest.mark.parametrize(
    "statement",
    [
        "import sinkstudy.unrelated",
        "import sinkstudy.unrelated as u",
        "from sinkstudy import unrelated",
        "from sinkstudy import unrelated as u",
        "from sinkstudy.unrelated import VALUE",
        "from sinkstudy.unrelated import *",
        "import os, sinkstudy.unrelated",
        "if True:\n    import sinkstudy.unrelated",
        "def later():\n    from sinkstudy import unrelated",
    ],
)
def test_every_way_of_importing_a_module_reaches_it(project, statement):
    root = project({SCRIPT: statement + "\n"})
    reached = names(reached_files(root / SCRIPT, root), root)
    assert reached - DATA == {SCRIPT, "sinkstudy/__init__.py", "sinkstudy/unrelated.py"}


@pytest.mark.parametrize("statement", ["from .unrelated import VALUE", "from . import unrelated"])
def test_relative_imports_within_the_package_count(project, statement):
    root = project({"sinkstudy/direct.py": statement + "\n"})
    assert root / "sinkstudy/unrelated.py" in reached_files(root / SCRIPT, root)


def test_modules_that_import_each_other_are_followed_once(project):
    root = project(
        {
            "sinkstudy/direct.py": "import sinkstudy.unrelated\n",
            "sinkstudy/unrelated.py": "import sinkstudy.direct\n",
        }
    )
    assert root / "sinkstudy/unrelated.py" in reached_files(root / SCRIPT, root)


SAME = {
    "comments": "# why\ndef double(x):\n    return 2 * x  # and how\n",
    "layout": "def double( x ):\n    return (\n        2 * x\n    )\n",
    "docstring": 'def double(x):\n    """Two times x, in\n    two lines."""\n    return 2 * x\n',
    "no docstring": "def double(x):\n    return 2 * x\n",
    "module's docstring": '"""About."""\ndef double(x):\n    return 2 * x\n',
}


@pytest.mark.parametrize("change", SAME)
def test_comments_docstrings_and_layout_do_not_count(fingerprint_of, change):
    assert fingerprint_of({INNER: SAME[change]}) == fingerprint_of({})


OTHER = {
    "number": "def double(x):\n    return 3 * x\n",
    "type": "def double(x):\n    return 2.0 * x\n",
    "default": 'def double(x, unit="a"):\n    return 2 * x\n',
    "order": "def double(x):\n    return x * 2\n",
    "name": "def double(y):\n    return 2 * y\n",
    "text": 'def double(x):\n    return "2x"\n',
    "expression of its own": "def double(x):\n    2 * x\n",
}


def test_what_computes_something_else_counts(fingerprint_of):
    assert len({fingerprint_of({INNER: code}) for code in OTHER.values()} | {fingerprint_of({})}) == len(OTHER) + 1


SPOKEN = [
    'raise ValueError("{}")',
    'raise ValueError("{}" + str(x)) from None',
    'raise ValueError(f"{} {{x!r}}", x)',
    'raise errors.StudyError(path, what=f"{}" "more")',
    'print("{}", x)',
    'warnings.warn("{}", stacklevel=2)',
    'logger.info("{} %s", x)',
]


@pytest.mark.parametrize("statement", SPOKEN)
def test_what_an_error_or_a_message_says_does_not_count(fingerprint_of, statement):
    one, other = ({INNER: f"def double(x):\n    {statement.format(text)}\n"} for text in ("is bad", "must be good"))
    assert fingerprint_of(one) == fingerprint_of(other)


def test_an_f_string_that_an_error_says_may_name_other_things(fingerprint_of):
    one, other = ({INNER: f"def double(x):\n    raise ValueError(f'{text}')\n"} for text in ("{x}", "{x!r} of {y}"))
    assert fingerprint_of(one) == fingerprint_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('raise ValueError("a")', 'raise KeyError("a")'),
        ('raise ValueError("a", 1)', 'raise ValueError("a", 2)'),
        ('raise ValueError("a")', 'print("a")'),
        ('print("a", one)', 'print("a", other)'),
        ('return print.of("a")', 'return print.of("b")'),
        ('return f"a {x}"', 'return f"b {x}"'),
        ("x = 'a'\n    raise ValueError(x)", "x = 'b'\n    raise ValueError(x)"),
    ],
)
def test_all_else_about_errors_and_messages_counts(fingerprint_of, one, other):
    bodies = ({INNER: f"def double(x):\n    {body}\n"} for body in (one, other))
    assert fingerprint_of(next(bodies)) != fingerprint_of(next(bodies))


EVERYTHING = '''
from __future__ import annotations
import math as m, sys
type_of: dict[str, int | None] = {**{"a": 1}, "b": None}
@m.cached(1, key=lambda x, /, y=2, *rest, z, w=3, **more: x)
class Thing(Base, metaclass=Meta):
    """Gone."""
    x: int
    async def run(self, *, a=None) -> "Thing":
        async with self as s, s: await s
        async for _ in s: yield
        return [i async for i in s if i] and {j: k for j, k in s} or {l for l in s}
def every(value, form):
    global G
    try:
        assert value, f"{value}"
        del value[1:2, ...]
    except (KeyError, *OTHERS) as error:
        raise ValueError(f"{error}") from error
    else: print("done")
    finally: value += 1.5e300j
    while (n := value) is not None and not n > -1: continue
    match value:
        case [1, *x] | {"k": str(x)} if x: x
        case {"k": 1, **rest}: rest
        case None | True: return f"{value!r:>{form}} {{}} {value:{form}}" 'é\\N{SNOWMAN}', b"\\xff".hex()
    return value if form else (yield from value) @ m.pi
'''


def test_the_fingerprint_is_the_same_under_every_python(fingerprint_of):
    """Found with 3.11.7, 3.12.1 and 3.13.0. Python 3.12 writes some f-strings differently."""
    assert fingerprint_of({INNER: EVERYTHING}) == "6ff8c6f75049c461"


@pytest.mark.parametrize("library", ["torch", "transformers"])
@pytest.mark.parametrize("statement", ["import torch.nn", "from transformers import AutoConfig"])
def test_versions_of_the_libraries_that_compute_count_where_they_are_used(
    fingerprint_of, monkeypatch, library, statement
):
    def installed(version: str) -> None:
        monkeypatch.setattr("sinkstudy.workflow.fingerprint.version", lambda of: version if of == library else "1")

    computing = {INNER: f"{statement}\n"}
    installed("2.13.0")
    here, apart = fingerprint_of(computing), fingerprint_of({})
    installed("2.13.0+cpu")
    assert fingerprint_of(computing) == here
    installed("2.14.0")
    assert fingerprint_of(computing) != here
    assert fingerprint_of({}) == apart


def modules(script: str) -> set[str]:
    files = names(reached_files(ROOT / "workflow/scripts" / script, ROOT), ROOT)
    paths = (Path(name) for name in files if name.startswith("sinkstudy/") and name.endswith(".py"))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}


def test_capturing_does_not_depend_on_figures_or_statistics():
    reached = modules("capture.py")
    assert reached >= {"sinkstudy.capture", "sinkstudy.store", "sinkstudy.prompts", "sinkstudy.models.loading"}
    apart = (
        "sinkstudy.figures",
        "sinkstudy.stats",
        "sinkstudy.findings",
        "sinkstudy.simulation",
        "sinkstudy.evaluation",
    )
    assert not [name for name in reached if name.startswith(apart)]


DRAWING = {kind: [kind] for kind in ("comparison", "heatmaps", "lengths", "maps", "predictors", "simulated", "timing")}
DRAWING |= {"statistics": ["heldout", "layer_pairs", "persistence", "weakening"]}


@pytest.mark.parametrize("kind", DRAWING)
def test_a_figure_depends_on_its_own_drawing_code_the_titles_and_the_common_style(kind):
    assert {name for name in modules(f"fig_{kind}.py") if name.startswith("sinkstudy.figures")} == {
        "sinkstudy.figures",
        *(f"sinkstudy.figures.{module}" for module in ("messages", "style", *DRAWING[kind])),
    }


@pytest.mark.parametrize("script", ["fig_maps.py", "findings.py", "statistics.py"])
def test_the_reached_modules_are_those_that_python_loads(script):
    """Run the script's imports in a fresh interpreter and ask it what it loaded."""
    tree = ast.parse((ROOT / "workflow/scripts" / script).read_text(encoding="utf-8"))
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    loaded = "import sys; print(*[name for name in sys.modules if name.split('.')[0] == 'sinkstudy'])"
    program = "\n".join([*imports, loaded])
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert modules(script) == set(printed.stdout.split())
