"""The explorer's page: the template, style and scripts beside this module, filled with a study; it loads nothing."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sinkstudy.explorer.study import read_study
from sinkstudy.store import Expected, atomic_write


def write_page(
    captures: Mapping[str, list[Path]],
    thresholds: list[float],
    threshold: float,
    page: Path,
    expected: Mapping[str, Expected] | None = None,
    costs: Mapping[str, Path] | None = None,
    plans: Mapping[str, list[Path]] | None = None,
) -> None:
    """Write the page for each model's capture files; for arguments and errors see `read_study`."""
    study = read_study(captures, thresholds, threshold, expected, costs, plans)
    environment = Environment(
        loader=PackageLoader("sinkstudy.explorer", ""), autoescape=True, undefined=StrictUndefined
    )
    environment.globals["source"] = _source
    html = environment.get_template("page.html").stream(description=study.description, packs=study.packs)
    with atomic_write(page) as temporary, temporary.open("wb") as stream:
        html.dump(stream, encoding="utf-8")


def _source(name: str) -> Markup:
    """The text of a file beside this module, for the page to include unescaped."""
    return Markup(files("sinkstudy.explorer").joinpath(name).read_text(encoding="utf-8"))
