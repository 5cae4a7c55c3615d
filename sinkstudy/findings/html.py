"""The findings as one HTML page without network: the Markdown rendered, figures inside, evidence on hover."""

import base64
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markupsafe import Markup, escape
from mdit_py_plugins.footnote import footnote_plugin
from PIL import Image

from sinkstudy.errors import StudyError

_SCALE = 0.65  # CSS pixels per pixel of a figure, which has 200 per inch
_TAGS = {
    "table_open": '<div class="table" tabindex="0"><table>\n',
    "table_close": "</table></div>\n",
    "footnote_block_open": '</section>\n<section id="evidence">\n<h2>Evidence</h2>\n<ol>\n',
    "footnote_block_close": "</ol>\n",
    "footnote_close": "</li>\n",
    "footnote_anchor": "",
}


def html(markdown: str, folder: Path) -> str:
    """The page for findings in Markdown whose figures lie in or below `folder`.

    Raises StudyError naming a figure that is not there. HTML within the Markdown is shown as text.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").use(footnote_plugin)
    parser.core.ruler.push("evidence", _evidence_on_hover)
    parser.core.ruler.push("figures", _figures_outside_paragraphs)
    parser.renderer = _Renderer(parser)  # instead of the plugin's own way to draw footnotes
    parser.renderer.rules |= {name: lambda tokens, at, *_: _TAGS[tokens[at].type] for name in _TAGS}
    environment = {"folder": folder, "contents": []}
    body = parser.render(markdown, environment)
    templates = Environment(loader=PackageLoader("sinkstudy.findings"), autoescape=True, undefined=StrictUndefined)
    return templates.get_template("page.html").render(body=Markup(body), contents=environment["contents"])


class _Renderer(RendererHTML):
    """Sections around second-level headings, figures with captions, wide tables that scroll by themselves."""

    def heading_open(self, tokens: list[Token], at: int, options: object, env: dict) -> str:
        if tokens[at].tag != "h2":
            return f"<{tokens[at].tag}>"
        title = _text(tokens[at + 1])
        slug = f"{len(env['contents']) + 1}-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}"
        env["contents"].append((slug, title))
        return f'</section>\n<section id="{slug}">\n<h2>'

    def image(self, tokens: list[Token], at: int, options: object, env: dict) -> str:
        path = env["folder"] / str(tokens[at].attrs["src"])
        if not path.is_file():
            raise StudyError(f"{path}: the findings show this figure and it is not there; run its rule first.")
        with Image.open(path) as image:
            size, title = [round(pixels * _SCALE) for pixels in image.size], image.info.get("Title", "")
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        caption = _text(tokens[at])
        return Markup(
            '<figure><button type="button"><img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">'
            "</button><figcaption>{}</figcaption></figure>"
        ).format(data, title or caption, *size, caption)

    def footnote_ref(self, tokens: list[Token], at: int, options: object, env: dict) -> str:
        number, note = tokens[at].meta["id"] + 1, escape(tokens[at].meta["text"])
        return f'<sup class="note"><a href="#note-{number}" title="{note}">[{number}]</a></sup>'

    def footnote_open(self, tokens: list[Token], at: int, options: object, env: dict) -> str:
        return f'<li id="note-{tokens[at].meta["id"] + 1}">'


def _text(token: Token) -> str:
    """What a reader sees of a token's inline content, without Markdown's marks."""
    return "".join(child.content for child in token.children or ())


def _evidence_on_hover(state: StateCore) -> None:
    """Give every footnote mark the text of its note, and every cell of a table row the notes of the row."""
    at_notes = [at for at, token in enumerate(state.tokens) if token.type == "footnote_open"]
    notes = {state.tokens[at].meta["id"]: _text(state.tokens[at + 2]) for at in at_notes}
    cells, of_row = [], []
    for token in state.tokens:
        for mark in token.children or ():
            if mark.type == "footnote_ref":
                mark.meta["text"] = notes[mark.meta["id"]]
                of_row.append(mark.meta["text"])
        if token.type == "tr_open":
            cells, of_row = [], []
        elif token.type in ("td_open", "th_open"):
            cells.append(token)
        elif token.type == "tr_close" and of_row:
            for cell in cells:
                cell.attrSet("title", "\n".join(of_row))


def _figures_outside_paragraphs(state: StateCore) -> None:
    for at, token in enumerate(state.tokens):
        if [child.type for child in token.children or ()] == ["image"]:
            state.tokens[at - 1].hidden = state.tokens[at + 1].hidden = True
