"""The findings: a report in Markdown in which every number comes from a table and says from which, and the verdicts.

The prose is in `templates/`, a file per section, put together by `findings.md.jinja`. `sections` computes what no table
holds as it is printed, `verdicts` decides, `text` prints numbers and escapes what others wrote, `html` makes the page.
"""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from sinkstudy.findings import mechanism, predictor_rules, published, replacing, rules, sections, text, verdicts
from sinkstudy.findings.inputs import Tables

__all__ = ["Tables", "markdown"]


def markdown(tables: Tables) -> str:
    """The whole report."""
    environment = Environment(
        loader=PackageLoader("sinkstudy.findings"),
        finalize=text.finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # for HTML; this is Markdown, and `finalize` escapes it
    )
    shown = {"percent": text.percent, "show": text.show, "count": text.count, "interval": text.interval}
    environment.filters |= shown | {"note": text.row_note, "code": text.code}
    environment.globals |= {"link": text.link, "note": text.note}
    environment.globals |= {"mechanism": mechanism, "predictor_rules": predictor_rules, "published": published}
    environment.globals |= {"replacing": replacing, "rules": rules, "sections": sections, "view": verdicts.view}
    environment.globals["source"] = lambda verdict: text.note(verdict.file, verdict.rows) if verdict.file else ""

    def figure(name: str, caption: str) -> str:
        drawn = name in tables.figures
        return text.Markdown(f"![{text.finalize(caption)}](figures/{name}.png)" if drawn else "")

    def label(model: str) -> str:
        return f"{model} (control)" if model in tables.controls else model

    page = environment.get_template("findings.md.jinja").render(
        t=tables,
        rows=tables.rows,
        figure=figure,
        label=label,
        judged={model: verdicts.judge(tables, model) for model in tables.models},
    )
    return text.number_footnotes(re.sub(r"\n{3,}", "\n\n", page.strip())) + "\n"
