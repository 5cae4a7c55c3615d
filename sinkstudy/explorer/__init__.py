"""The explorer: one page, without network, that recomputes the study at any length and threshold from the captures.

The page is the template, style and scripts beside this module, filled with a study; it loads nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sinkstudy.explorer.study import read_study
from sinkstudy.store import atomic_write


def write_page(
    captures: Mapping[str, list[Path]],
    thresholds: list[float],
    threshold: float,
    page: Path,
    costs: Mapping[str, Path] = {},
    plans: Mapping[str, list[Path]] = {},
) -> None:
    """Write the page for each model's capture files; for arguments and errors see `read_study`."""
    description, packs = read_study(captures, thresholds, threshold, costs, plans)
    loader = PackageLoader("sinkstudy.explorer", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    # The page includes files beside this module as they are.
    environment.globals["source"] = lambda name: Markup(loader.get_source(environment, name)[0])
    html = environment.get_template("page.html").stream(description=description, packs=packs)
    with atomic_write(page) as temporary, temporary.open("wb") as stream:
        html.dump(stream, encoding="utf-8")
