import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from browser import opened, showing
from hypothesis import given
from hypothesis import strategies as st

from sinkstudy.explorer import write_page
from sinkstudy.explorer.packing import (
    MAP_STEPS,
    SCORE_STEPS,
    SLIDER,
    block_cells,
    pack_maps,
    pack_scores,
    score_steps,
    stored_lengths,
)
from sinkstudy.explorer.study import Shape, read_study, thinning
from sinkstudy.prompts import Prompt, combined_digest
from sinkstudy.stats.scores import null_score
from sinkstudy.store import Expected, open_capture, write_capture

ATTRIBUTES = {"source": "models/made-up", "revision": "none", "dtype": "float32", "bos": "auto"}
HOSTILE = [
    "</script><script>alert('token')</script>",
    "<img src=x onerror=alert(1)>",
    "\u2028",
    "<!--",
    "${alert(2)}",
    "<b>bold</b>",
    "\x00\x1b",
    "&lt;",
    " the",
    "\n",
]


def softmax_maps(rng: np.random.Generator, layers: int, heads: int, n: int) -> np.ndarray:
    """Causal maps (layer, head, query, key) of random logits; the first token draws some heads strongly."""
    logits = rng.normal(size=(layers, heads, n, n))
    logits[..., 0] += rng.choice([0, 0, 3, 8], size=(layers, heads, 1))
    logits[..., ~np.tril(np.ones((n, n), bool))] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def made_up_capture(path: Path, model: str, maps: dict[str, np.ndarray], full_rows: bool = True) -> None:
    """A capture of these maps by prompt, whole ones only of up to 64 tokens."""
    with write_capture(path, ATTRIBUTES | {"model": model}, ("first",)) as writer:
        for name, attention in maps.items():
            n = attention.shape[2]
            words = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
            writer.begin(Prompt(name, "long" if n > 24 else "short", "text"), list(range(n)), words)
            for part in attention if n <= 64 else ():
                writer.add_map(name, part)
            layers, norms = list(range(len(attention))), np.ones(attention.shape[:2])
            row_sum = None if full_rows else attention.sum(-1)
            writer.finish(name, layers, 0.0, key_mass=attention[..., :1], output_norm=norms, row_sum=row_sum)


def captured(path: Path) -> str:
    with open_capture(path) as file:
        return combined_digest(file.prompts.items())


def unpacked(kind: str, text: str, count: int) -> np.ndarray:
    """Differences back from a packed text, by the layout's description and not by the code that wrote it."""
    planes = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(-1, count)
    assert len(planes) == {"int16": 2, "int32": 4}[kind]
    return np.ascontiguousarray(planes.T).view({"int16": "<i2", "int32": "<i4"}[kind]).ravel()


def test_captures_are_open_one_at_a_time_and_one_of_another_model_is_refused(tmp_path, monkeypatch, refuses):
    rng, page, opened_files = np.random.default_rng(0), tmp_path / "page.html", []
    paths = {model: [tmp_path / f"{model}{i}.h5" for i in range(2)] for model in "ab"}
    for model, files in paths.items():
        for i, path in enumerate(files):
            made_up_capture(path, model, {f"p{i}": softmax_maps(rng, 2, 2, 6), f"q{i}": softmax_maps(rng, 2, 2, 5)})
    expected = {model: Expected({"model": "b"}, {path.stem: captured(path) for path in paths[model]}) for model in "ab"}
    with refuses("a0.h5", "'a'", "'b'"):
        write_page(paths, [0.9], 0.9, page, expected)
    assert not page.exists()

    class Counted(h5py.File):
        def __init__(self, name: Path, *arguments: object, **settings: object):
            assert not any(opened_files), "there may be more captures than a process may open files"
            super().__init__(name, *arguments, **settings)
            opened_files.append(self)  # true while it is open

    monkeypatch.setattr(h5py, "File", Counted)
    write_page(paths, [0.9], 0.9, page)
    assert len(opened_files) == 8  # for its size, and for what is in it


@pytest.mark.parametrize("n", [1, 30])
def test_the_page_knows_which_position_receives_most_of_each_head_where_that_was_captured(tmp_path, n):
    path, mass = tmp_path / "c.h5", np.full((2, 2, n), 0.01)
    mass[..., -1] = np.nan
    for cell, position in enumerate((0, 5, 7, 3) if n > 1 else ()):
        mass.reshape(4, n)[cell, position] = 0.4567
    with write_capture(path, ATTRIBUTES | {"model": "m"}, ("first",)) as writer:
        for name, positions in {"with": mass, "without": None}.items():
            writer.begin(Prompt(name, "s", "text"), [0] * n, ["t"] * n)
            arrays = {"key_mass": np.ones((2, 2, n, 1)), "output_norm": np.ones((2, 2)), "position_mass": positions}
            writer.finish(name, [0, 1], 0.0, **arrays)
    found = [
        prompt["receivers"] for prompt in read_study({"m": [path]}, [0.9], 0.9).description["models"][0]["prompts"]
    ]
    assert found == [[(0, 0.457), (5, 0.457), (7, 0.457), (3, 0.457)] if n > 1 else None, None]


@given(
    masses=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=80),
    thresholds=st.lists(st.sampled_from([0.3, 0.8, 0.9, 0.905, 1 / 3, 0.123456]), max_size=3),
)
def test_quantised_scores_are_close_and_keep_every_sink_decision(masses, thresholds):
    lengths = np.arange(1, len(masses) + 1)
    score = (np.cumsum(masses, dtype=float) / lengths)[None, None]
    levels = sorted({*SLIDER, *thresholds})
    steps = score_steps(score, lengths, levels)
    again = steps / (SCORE_STEPS * lengths)
    assert (np.abs(again - score) <= 1.5 / (SCORE_STEPS * lengths)).all()
    for level in levels:
        np.testing.assert_array_equal(again >= level, score >= level)
    np.testing.assert_array_equal(np.cumsum(unpacked(*pack_scores(steps), len(masses))), steps.ravel())


def test_scores_exactly_on_a_threshold_stay_sinks():
    lengths = np.arange(1, 101)
    for level in SLIDER:
        below = np.nextafter(level, 0)
        score = np.array([np.full(100, level), np.full(100, below)])[:, None]
        again = score_steps(score, lengths, list(SLIDER)) / (SCORE_STEPS * lengths)
        assert (again[0] >= level).all()
        assert (again[1] < level).all()


def test_steps_too_large_for_two_bytes_take_four():
    steps = np.array([[[1 << 15, 3]]])
    kind, text = pack_scores(steps)
    assert kind == "int32"
    assert unpacked(kind, text, 2).tolist() == [1 << 15, 3 - (1 << 15)]


def test_thresholds_too_close_to_tell_are_refused(refuses):
    with refuses("sinks.thresholds", "0.9", "0.9000001"):
        score_steps(np.array([[[0.90000005]]]), np.array([1]), [0.9, 0.9000001])


@pytest.mark.parametrize(
    ("n", "dense"), [(1, 32), (32, 32), (33, 32), (100, 32), (1000, 32), (5000, 256), (7, 1 << 30)]
)
def test_stored_lengths_begin_densely_and_end_with_the_prompt(n, dense):
    lengths = stored_lengths(n, dense)
    assert lengths[: min(n, dense)].tolist() == list(range(1, min(n, dense) + 1))
    assert lengths[-1] == n
    assert (np.diff(lengths) > 0).all()
    for start in range(dense, n // 2, dense):
        if start & (start - 1) == 0:
            assert ((lengths > start) & (lengths <= 2 * start)).sum() == dense // 4


@pytest.mark.parametrize(("n", "block"), [(1, 1), (5, 1), (5, 2), (8, 4), (3, 8)])
def test_maps_are_averages_over_the_causal_cells_of_a_block(n, block):
    maps = softmax_maps(np.random.default_rng(n), 1, 2, n)[0]
    packed = pack_maps(maps, block)
    assert packed.shape == (2, block_cells(n, block))
    for head in range(2):
        cells = []
        for top in range(0, n, block):
            for left in range(0, top + 1, block):
                inside = [
                    maps[head, i, j]
                    for i in range(top, min(top + block, n))
                    for j in range(left, min(left + block, n))
                    if j <= i
                ]
                cells.append(sum(inside) / len(inside))
        np.testing.assert_allclose(packed[head] / MAP_STEPS, np.sqrt(cells), atol=0.501 / MAP_STEPS)


def test_a_small_study_is_kept_whole_and_a_large_one_within_its_budget():
    whole = thinning([Shape(32, 512, False), Shape(32, 120, True)])
    assert (whole.dense > 1 << 20, whole.block) == (True, 1)
    eight_b = thinning([Shape(1024, 256, True)] * 20)
    assert eight_b.dense > 256  # every length of 20 prompts of 256 tokens
    assert 7 / 3 * 20 * 1024 * 256 + 4 / 3 * 20 * 1024 * block_cells(256, eight_b.block) <= 20e6
    longer = thinning([Shape(1024, 4096, True)] * 20)
    assert 7 / 3 * 20 * 1024 * len(stored_lengths(4096, longer.dense)) <= 14e6
    assert longer.dense >= 32


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """The explorer of two made-up models of different shapes, and their maps (layer, head, query, key) by prompt.

    All tokens are hostile, and the rows of one model sum to less than 1, as learned sinks make them.
    """
    folder = tmp_path_factory.mktemp("explorer")
    rng = np.random.default_rng(7)
    maps, captures = {}, {}
    for model, layers, heads in (("wide", 3, 4), ("leaky", 5, 3)):
        maps[model] = {name: softmax_maps(rng, layers, heads, n) for name, n in (("one", 1), ("few", 10), ("many", 80))}
        if model == "leaky":
            maps[model] = {
                name: part * rng.uniform(0.02, 1, size=(*part.shape[:3], 1)).astype(np.float32)
                for name, part in maps[model].items()
            }
        captures[model] = [folder / model / "00000.h5"]
        made_up_capture(captures[model][0], model, maps[model], full_rows=model == "wide")
    for name in ("explorer.html", "again.html"):
        write_page(captures, [0.3, 0.9, 0.905], 0.9, folder / name)
    return folder / "explorer.html", maps


@pytest.fixture(scope="module")
def page(study) -> Iterator:
    with opened(study[0]) as page:
        yield page


def test_the_same_captures_give_the_same_bytes(study):
    assert study[0].read_bytes() == study[0].with_name("again.html").read_bytes()


def test_the_description_survives_hostile_tokens(study):
    """Read as a parser of HTML does: a script element ends at the first `</script`."""
    html = study[0].read_text(encoding="utf-8")
    text = re.search(r'<script type="application/json" id="study">(.*?)</script', html, re.S)[1]
    tokens = json.loads(text)["models"][0]["prompts"][1]["tokens"]
    assert tokens == HOSTILE
    assert "<img src=x" not in html
    assert "\u2028" not in text


def numbers(page) -> dict[str, str]:
    return page.evaluate(
        "Object.fromEntries(['sink-percent', 'correlation', 'null', 'excess'].map(id => "
        "[id, document.getElementById(id).textContent]))"
    )


def expected(maps: list[np.ndarray], k: int, threshold: float) -> tuple[float, float, float]:
    """Sink fraction, correlation and mean score of prompts cut to k tokens, from their maps."""
    cut = [part[:, :, :k, :k].astype(float) for part in maps if part.shape[2] >= k]
    scores = np.stack([part[..., 0].sum(-1) / part.sum((-1, -2)) for part in cut])
    is_sink = scores >= threshold
    followed = [is_sink[prompt, 1:, head].mean() for prompt, head in np.argwhere(is_sink[:, 0])]
    return is_sink.mean(), np.mean(followed) if followed else np.nan, scores.mean()


@pytest.mark.parametrize(("prompt", "k"), [("one", 1), ("few", 1), ("few", 7), ("many", 24), ("many", 80), ("all", 10)])
def test_sliders_move_and_the_numbers_are_those_of_the_maps(study, page, prompt, k):
    for model, maps in study[1].items():
        for threshold in (0.57, 0.905, 1.0):
            showing(page, model, prompt, k, threshold)
            chosen = list(maps.values()) if prompt == "all" else [maps[prompt]]
            fraction, correlation, mean = expected(chosen, k, threshold)
            shown = numbers(page)
            assert page.locator("#sink-percent").get_attribute("data-fraction") == f"{fraction:.9g}"
            assert shown["sink-percent"] == f"{100 * fraction:.2f}%"
            assert shown["correlation"] == ("undefined" if np.isnan(correlation) else f"{100 * correlation:.2f}%")
            assert float(shown["null"]) == pytest.approx(float(null_score(k)), abs=5.01e-4)
            if k == 1:
                assert shown["excess"] == "undefined"
            else:
                excess = (mean - null_score(k)) / (1 - null_score(k))
                assert float(shown["excess"]) == pytest.approx(excess, abs=6e-4)


def test_the_heatmap_shows_every_head_and_a_click_shows_its_map(study, page):
    few = study[1]["wide"]["few"]
    scores = few[..., 0].astype(float).mean(-1)
    showing(page, "wide", "few", 10, 0.9)
    drawn = np.array(page.evaluate("document.getElementById('score-map').data[0].z"))
    np.testing.assert_allclose(drawn, scores, atol=1e-5)
    dots = page.evaluate("(({x, y}) => y.map((l, i) => [l, x[i]]))(document.getElementById('score-map').data[1])")
    assert dots == np.argwhere(scores >= 0.9).tolist()
    box = page.locator("#score-map .nsewdrag").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 2.5 / 4, box["y"] + box["height"] * 1.5 / 3)
    page.wait_for_function("document.body.dataset.shown.endsWith('layer 1, head 2')")
    curve = page.evaluate("document.getElementById('head-plot').data[2].y")
    np.testing.assert_allclose(curve, np.cumsum(few[1, 2, :, 0]) / np.arange(1, 11), atol=1e-4)
    shown = page.evaluate("document.getElementById('map-plot').data[0].z")
    shown = np.array([[np.nan if value is None else value for value in row] for row in shown])
    assert (np.isnan(shown) == np.triu(np.ones((10, 10), bool), 1)).all()
    np.testing.assert_allclose(np.nan_to_num(shown), few[1, 2], atol=1.1 / MAP_STEPS)
    assert page.locator("#head-numbers tr").first.inner_text().split("\t")[-1] == f"{scores[1, 2]:.3f}"
    showing(page, "wide", "many", 80, 0.9)
    assert "No map is stored" in page.locator("#map-note").inner_text()


def test_the_page_works_from_the_keyboard(page):
    showing(page, "wide", "few", 5, 0.9)
    page.select_option("#layer", "0")
    page.select_option("#head", "0")
    page.locator("#length").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.body.dataset.shown.startsWith('wide; few; 6; 0.9;')")
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[0] == "threshold"
    assert "heatmaps" in reached
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.body.dataset.shown.startsWith('wide; few; 6; 0.89;')")
    page.locator("#heatmaps").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_function("document.body.dataset.shown.endsWith('layer 0, head 2')")


def test_tokens_are_shown_as_text(page):
    showing(page, "wide", "few", 10, 0.9)
    assert page.locator("#tokens span").all_text_contents()[:2] == HOSTILE[:2]
    assert page.locator("#tokens img, #tokens b").count() == 0
    assert "<b>bold</b>" in page.locator("#map-plot .ytick text").all_text_contents()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 740})
    for prompt in ("many", "few"):
        showing(page, "wide", prompt, 10, 0.9)
        # Plots follow a change of the window with a delay.
        page.wait_for_function("(width) => document.documentElement.scrollWidth <= width", arg=width)
