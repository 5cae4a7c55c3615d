"""The findings report: Markdown in which every number comes from a table and says from which.

Each section is a module with one function, `section(tables)`, that returns Markdown beginning with its heading; to
add one, write the module and name it in SECTIONS. What all of them print with is in `text`.
"""

from sinkstudy.findings import (
    conclusion,
    control,
    correlation,
    costs,
    exactness,
    heldout,
    layer_pairs,
    length_threshold,
    lengths,
    methods,
    models,
    optimization,
    persistence,
    positions,
    published,
    simulation,
    summary,
)
from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.text import number_footnotes

__all__ = ["SECTIONS", "Tables", "markdown"]

SECTIONS = (
    summary,
    models,
    lengths,
    control,
    positions,
    correlation,
    length_threshold,
    layer_pairs,
    persistence,
    simulation,
    heldout,
    optimization,
    published,
    conclusion,
    exactness,
    costs,
    methods,
)


def markdown(tables: Tables) -> str:
    """The whole report."""
    return number_footnotes("\n\n".join(part.section(tables) for part in SECTIONS)) + "\n"
