import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sinkstudy.workflow.fingerprint import fingerprint

ROOT = Path(__file__).parents[1]
SCRIPT = "workflow/scripts/job.py"
TREE = {
    SCRIPT: "from sinkstudy.direct import work\n\nwork(1)\n",
    "sinkstudy/__init__.py": '"""A package."""\n',
    "sinkstudy/direct.py": "from sinkstudy.deep.inner import double\n\n\ndef work(x):\n    return double(x)\n",
    "sinkstudy/deep/__init__.py": "",
    "sinkstudy/deep/inner.py": 'def double(x):\n    """Twice x."""\n    return 2 * x\n',
    "sinkstudy/deep/sibling.py": "VALUE = 1\n",
    "sinkstudy/deep/page.html": "<p>One</p>\n",
    "sinkstudy/apart/page.html": "<p>One</p>\n",
    "sinkstudy/unrelated.py": "VALUE = 1\n",
    "workflow/scripts/other.py": "VALUE = 1\n",
}


@pytest.fixture
def fingerprint_of(tmp_path):
    """The fingerprint of the small project with these files edited; every call builds a tree of its own."""
    trees = 0

    def of(edits: dict[str, str]) -> str:
        nonlocal trees
        trees += 1
        root = tmp_path / str(trees)
        for name, content in (TREE | edits).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content, encoding="utf-8")
        return fingerprint(root / SCRIPT, root)

    return of


def test_a_fingerprint_does_not_depend_on_where_the_project_lies(fingerprint_of):
    assert fingerprint_of({}) == fingerprint_of({})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (SCRIPT, "from sinkstudy.direct import work\n\nwork(2)\n"),
        ("sinkstudy/direct.py", TREE["sinkstudy/direct.py"].replace("double(x)", "double(x) + 1")),
        ("sinkstudy/deep/inner.py", "def double(x):\n    return 3 * x\n"),
        ("sinkstudy/deep/inner.py", 'def double(x, unit="a"):\n    return 2 * x\n'),
        ("sinkstudy/__init__.py", "VALUE = 1\n"),
        ("sinkstudy/deep/__init__.py", "VALUE = 1\n"),
        ("sinkstudy/deep/page.html", "<p>Two</p>\n"),
    ],
    ids=["script", "imported", "imported by imported", "default", "package", "inner package", "template"],
)
def test_code_that_the_script_reaches_counts(fingerprint_of, file, content):
    assert fingerprint_of({file: content}) != fingerprint_of({})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("sinkstudy/unrelated.py", "VALUE = 2\n"),
        ("sinkstudy/deep/sibling.py", "VALUE = 2\n"),
        ("sinkstudy/new.py", "VALUE = 2\n"),
        ("sinkstudy/apart/page.html", "<p>Two</p>\n"),
        ("workflow/scripts/other.py", "VALUE = 2\n"),
    ],
)
def test_code_that_the_script_does_not_reach_does_not_count(fingerprint_of, file, content):
    assert fingerprint_of({file: content}) == fingerprint_of({})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (SCRIPT, "# why\nfrom sinkstudy.direct import work\nwork( 1 )  # and how\n"),
        ("sinkstudy/__init__.py", '"""Another description."""\n'),
        ("sinkstudy/__init__.py", ""),
        ("sinkstudy/deep/inner.py", "def double(x):\n    return (\n        2 * x\n    )\n"),
        ("sinkstudy/deep/inner.py", 'def double(x):\n    """Two times x, in\n    two lines."""\n    return 2 * x\n'),
    ],
    ids=["comments", "package docstring", "no package docstring", "layout", "docstring"],
)
def test_comments_docstrings_and_layout_do_not_count(fingerprint_of, file, content):
    assert fingerprint_of({file: content}) == fingerprint_of({})


def test_a_string_that_is_no_docstring_counts(fingerprint_of):
    one, other = ({"sinkstudy/deep/inner.py": f'def double(x):\n    return "{text}"\n'} for text in "ab")
    assert fingerprint_of(one) != fingerprint_of(other)


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
    ],
)
def test_every_way_of_importing_a_module_makes_it_count(fingerprint_of, statement):
    script = {SCRIPT: statement + "\n"}
    assert fingerprint_of(script) != fingerprint_of(script | {"sinkstudy/unrelated.py": "VALUE = 2\n"})


@pytest.mark.parametrize("statement", ["from .unrelated import VALUE", "from . import unrelated"])
def test_relative_imports_within_the_package_count(fingerprint_of, statement):
    direct = {"sinkstudy/direct.py": statement + "\n"}
    assert fingerprint_of(direct) != fingerprint_of(direct | {"sinkstudy/unrelated.py": "VALUE = 2\n"})


def test_an_import_inside_a_function_counts(fingerprint_of):
    script = {SCRIPT: "def later():\n    from sinkstudy import unrelated\n"}
    assert fingerprint_of(script) != fingerprint_of(script | {"sinkstudy/unrelated.py": "VALUE = 2\n"})


def test_modules_that_import_each_other_are_followed_once(fingerprint_of):
    circle = {
        "sinkstudy/direct.py": "import sinkstudy.unrelated\n",
        "sinkstudy/unrelated.py": "import sinkstudy.direct\n",
    }
    changed = circle | {"sinkstudy/unrelated.py": "import sinkstudy.direct\nVALUE = 2\n"}
    assert fingerprint_of(circle) != fingerprint_of(changed)


@pytest.fixture(scope="module")
def real_trees(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A copy of this project's code, and per module of the library a copy in which only that module differs."""
    base = tmp_path_factory.mktemp("real") / "as_it_is"
    code_only = shutil.ignore_patterns("__pycache__")
    for folder in ("sinkstudy", "workflow/scripts"):
        shutil.copytree(ROOT / folder, base / folder, ignore=code_only)
    edited = {}
    for module in sorted((base / "sinkstudy").rglob("*.py")):
        name = ".".join(module.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        edited[name] = tmp_path_factory.mktemp("real") / "edited"
        shutil.copytree(base, edited[name])
        with (edited[name] / module.relative_to(base)).open("a", encoding="utf-8") as stream:
            stream.write("\nADDED_BY_A_TEST = 1\n")
    return base, edited


def modules_that_count(real_trees: tuple[Path, dict[str, Path]], script: str) -> set[str]:
    base, edited = real_trees
    path = Path("workflow/scripts") / script
    unchanged = fingerprint(base / path, base)
    return {name for name, root in edited.items() if fingerprint(root / path, root) != unchanged}


def test_capturing_does_not_depend_on_figures_or_statistics(real_trees):
    reached = modules_that_count(real_trees, "capture.py")
    assert reached >= {
        "sinkstudy",
        "sinkstudy.capture",
        "sinkstudy.store",
        "sinkstudy.prompts",
        "sinkstudy.models.loading",
    }
    assert not {name for name in reached if name.startswith("sinkstudy.figures")}
    assert not reached & {
        "sinkstudy.stats.scores",
        "sinkstudy.stats.correlation",
        "sinkstudy.findings",
        "sinkstudy.simulation.formula",
    }


DRAWING = {kind: [kind] for kind in ("comparison", "heatmaps", "lengths", "maps", "simulated", "timing")}
DRAWING |= {"maps": ["maps", "examples"], "statistics": ["heldout", "layer_pairs", "persistence", "weakening"]}


@pytest.mark.parametrize("kind", DRAWING)
def test_a_figure_depends_on_its_own_drawing_code_and_the_common_style(real_trees, kind):
    reached = modules_that_count(real_trees, f"fig_{kind}.py")
    assert {name for name in reached if name.startswith("sinkstudy.figures")} == {
        "sinkstudy.figures",
        *(f"sinkstudy.figures.{module}" for module in ("style", *DRAWING[kind])),
    }


@pytest.mark.parametrize("script", ["correlation.py", "fig_maps.py", "findings.py"])
def test_the_modules_that_count_are_those_that_python_loads(real_trees, script):
    """Run the script's imports in a fresh interpreter and ask it what it loaded."""
    tree = ast.parse((ROOT / "workflow/scripts" / script).read_text(encoding="utf-8"))
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    loaded = "import sys; print(*[name for name in sys.modules if name.split('.')[0] == 'sinkstudy'])"
    program = "\n".join([*imports, loaded])
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert modules_that_count(real_trees, script) == set(printed.stdout.split())
