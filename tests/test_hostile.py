"""Prompts written to break the pages, through the whole workflow and into a browser."""

import json
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import h5py
import pandas as pd
import pytest
from browser import opened, showing
from study import ROOT, SMALL, snakemake, write_study
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

RIGHT_TO_LEFT, OVERRIDE, ISOLATE, EMBEDDING = "\u200f", "\u202e", "\u2067", "\u202b"
FAMILY, STACKED = "\U0001f469\u200d\U0001f469\u200d\U0001f467", "e\u0301\u0302\u0316"
PIECES = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    '" onmouseover="alert(4)" x="',
    "<!--",
    "${alert(5)}",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{wildcards.model}",
    "[link](javascript:alert(6))",
    "![](https://example.org/x.png)",
    "| --- |",
    "[^1]",
    "# heading",
    "$x^2$",
    "שלום",
    "\u2028",
    *(RIGHT_TO_LEFT, OVERRIDE, ISOLATE, EMBEDDING),
    *(FAMILY, STACKED),
]
PROMPTS = {
    "scripts": " then ".join(PIECES[:6]),
    "markup": " and ".join(PIECES[6:15]),
    "bidi": f"one {OVERRIDE} two {ISOLATE} three שלום four {EMBEDDING} five {RIGHT_TO_LEFT} six",
    "marks": f"a {FAMILY} b {STACKED} c \u2028 d" + " <b>long</b> text" * 6,
}
GRID = {"lengths": [24], "policies": ["consistent"], "strategies": ["first_value"], "answer_tokens": 2}
FOLDER = "<img src=x onerror=alert(7)> 'of a model' **bold** [^2] `code` ![figure](none.png)"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished study of a model whose vocabulary holds every piece whole, so that its tokens are hostile too."""
    folder = tmp_path_factory.mktemp("hostile")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/reference")
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models/reference")
    tokenizer.add_tokens(PIECES)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for part in (model, tokenizer):
        part.save_pretrained(folder / FOLDER)
    settings = {
        "models": {"hostile": {"source": FOLDER}},
        "prompts": "prompts.tsv",
        "statistics": SMALL["statistics"],
        "tables": {"csv_max_prompts": len(PROMPTS) - 1},
        "simulation": {},
        "benchmark": SMALL["benchmark"] | GRID,
    }
    rows = [(name, ("short", "long")[i % 2], quoted(text)) for i, (name, text) in enumerate(PROMPTS.items())]
    done = snakemake(write_study(folder, settings, rows))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def stored_tokens(study: Path) -> dict[str, list[str]]:
    with h5py.File(study / "results/captures/hostile/00000.h5") as file:
        return {name: [token.decode() for token in file[name]["tokens"][()]] for name in file}


def test_every_hostile_piece_is_a_token_of_a_capture(study):
    tokens = {token for prompt in stored_tokens(study).values() for token in prompt}
    assert set(PIECES) <= tokens


def test_the_explorer_shows_hostile_tokens_as_text_in_their_order(study):
    with opened(study / "results/explorer.html") as page:
        for prompt, tokens in stored_tokens(study).items():
            showing(page, "hostile", prompt, len(tokens), 0.9)
            assert page.locator("#tokens span").all_text_contents() == tokens
            assert page.locator("#tokens *:not(span), body img, [onerror], [onmouseover]").count() == 0
            # A mark that turns the direction of writing turns nothing beyond its own token.
            boxes = page.locator("#tokens span").evaluate_all(
                "spans => spans.map(s => [...s.getClientRects()]).map(r => [r.at(0), r.at(-1)]).map(([first, last]) => "
                "[first.top, first.left, last.top, last.right])"
            )
            for (_, _, top, right), (next_top, next_left, _, _) in pairwise(boxes):
                assert next_top > top + 5 or next_left >= right - 1, prompt
            labels = "".join(page.locator("#map-plot .ytick text").all_text_contents())
            assert not re.search("[\u200f\u202a-\u202e\u2066-\u2069]", labels)
        assert FOLDER in page.locator("#precision").inner_text()


def test_the_findings_show_a_hostile_model_folder_as_text_and_their_figures(study):
    with opened(study / "results/findings.html") as page:
        assert page.locator("main script, [onerror], a[href^=javascript]").count() == 0
        pictures = page.locator("img").evaluate_all("all => all.map(i => i.complete && i.naturalWidth > 0)")
        assert len(pictures) > 8
        assert all(pictures)
        assert FOLDER in page.locator("body").inner_text()


def test_long_tables_are_parquet_alone_and_the_findings_name_files_that_are_there(study):
    for name in ("scores", "lengths", "activations", "positions", "sink_positions"):
        assert not (study / f"results/{name}/hostile.csv").exists()
        assert set(pd.read_parquet(study / f"results/{name}/hostile")["prompt"]) == set(PROMPTS)
    verdicts = json.loads((study / "results/verdicts.json").read_text(encoding="utf-8"))
    named = {number["table"] for one in verdicts for number in one["evidence"].values()}
    notes = re.findall(r"^\[\^\d+\]: (.*)$", (study / "results/findings.md").read_text(encoding="utf-8"), re.M)
    named |= {file for note in notes for file in re.findall("`(results/[^`]+)`: ", note)}
    assert {"results/scores/hostile/", "results/lengths/hostile/", "results/correlation/hostile.csv"} <= named
    assert [file for file in named if not (study / file).exists()] == []


def test_figures_hold_nothing_that_runs_or_loads(study):
    figures = sorted((study / "results/figures").glob("*.svg"))
    assert len(figures) > 10
    for path in figures:
        for element in ElementTree.parse(path).iter():
            assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "a"), path
            for name, value in element.attrib.items():
                assert not name.startswith("on"), path
                assert not name.endswith("href") or value.startswith(("#", "data:image/png")), path


def test_the_description_in_the_explorer_is_what_was_stored(study):
    html = (study / "results/explorer.html").read_text(encoding="utf-8")
    text = re.search(r'<script type="application/json" id="study">(.*?)</script', html, re.S)[1]
    (model,) = json.loads(text)["models"]
    assert {prompt["id"]: prompt["tokens"] for prompt in model["prompts"]} == stored_tokens(study)


@pytest.mark.parametrize(
    ("row", "mentions"),
    [
        (("zero", "short", "a\0b"), ["'zero'", "NUL"]),
        (("<img src=x>", "short", "text"), ["line 2", "'<img src=x>'"]),
        (("one", f"set{OVERRIDE}", "text"), ["line 2", "set name"]),
    ],
    ids=["NUL", "id", "set"],
)
def test_what_cannot_be_shown_is_refused_before_any_job(tmp_path, row, mentions):
    refused = snakemake(write_study(tmp_path, SMALL, [row]), "-n")
    assert refused.returncode != 0
    (sentence,) = [line for line in (refused.stdout + refused.stderr).splitlines() if line.startswith("error: ")]
    assert all(mention in sentence for mention in mentions)
    assert "Traceback" not in refused.stderr
