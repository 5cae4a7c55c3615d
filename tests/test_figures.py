import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from sinkstudy.figures.comparison import comparison_figure
from sinkstudy.figures.heatmaps import contour_heatmap, layer_bars, outline, score_heatmap
from sinkstudy.figures.lengths import head_curves_figure, length_figure
from sinkstudy.figures.maps import ExampleMap, maps_figure, no_maps_figure
from sinkstudy.figures.simulated import simulated_figure
from sinkstudy.figures.style import COLOURS, new_figure, save
from sinkstudy.figures.timing import timing_figure, tradeoff_figure
from sinkstudy.stats.scores import null_score

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")


def heads_table(layers: tuple[int, ...] = (0, 1, 4), heads: int = 4, **columns: object) -> pd.DataFrame:
    score = np.linspace(0.05, 1, len(layers) * heads)
    table = pd.DataFrame(
        {
            "model": "tiny",
            "set": "short",
            "layer": np.repeat(layers, heads),
            "head": np.tile(np.arange(heads), len(layers)),
            "prompts": 3,
            "mean_tokens": 7.3,
            "mean_sink_score": score,
            "mean_null_score": 0.4,
            "mean_excess_score": (score - 0.4) / 0.6,
        }
    )
    return table.assign(**columns)


def layers_table(layers: tuple[int, ...] = (0, 1, 4), **columns: object) -> pd.DataFrame:
    mean = np.linspace(0.1, 0.9, len(layers))
    table = pd.DataFrame({"layer": layers, "mean_sink_score": mean, "score_low": mean - 0.05, "score_high": mean + 0.1})
    return table.assign(mean_null_score=0.4).assign(**columns)


def curves_table(longest: int, **columns: object) -> pd.DataFrame:
    """Curves over prompts of which one fewer reaches every length."""
    parts = []
    for threshold in (0.3, 0.9):
        k = np.arange(1, longest + 1)
        null = null_score(k)
        excess = np.where(k == 1, NAN, -0.02)
        part = {"model": "tiny", "set": "all", "threshold": threshold, "n_tokens": k, "prompts": longest + 1 - k}
        part |= {"sink_fraction": 1 / k, "sink_fraction_low": 0.9 / k, "sink_fraction_high": np.where(k > 3, NAN, 1)}
        part |= {"mean_score": null + 0.01, "null_score": null, "mean_excess": excess}
        part |= {"mean_excess_low": excess - 0.01, "mean_excess_high": excess + 0.01}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts).assign(**columns)


def head_curves(longest: int, heads: int = 3) -> Figure:
    k = np.arange(1, longest + 1)
    scores = np.linspace(0.2, 1, 2 * heads).reshape(2, heads, 1) * np.ones(longest)
    return head_curves_figure("tiny", k, scores, longest + 1 - k, null_score(k), 0.9)


def comparison_rows(groups: tuple[str, ...], sides: tuple[str, ...], excess: float = 0.25) -> pd.DataFrame:
    rows = [
        {"group": group, "side": side, "sink_percent": 12.5 * i, "mean_excess": excess, "correlation_percent": 30.0}
        | {"threshold": 0.9, "prompts": i or NAN}
        for i, group in enumerate(groups)
        for side in sides
    ]
    table = pd.DataFrame(rows)
    table.loc[0, ["mean_excess", "correlation_percent"]] = NAN
    return table


def benchmark_table(lengths: tuple[int, ...] = (24, 128)) -> pd.DataFrame:
    rows = [
        {
            "model": "tiny",
            "phase": phase,
            "n_tokens": n,
            "batch": batch,
            "strategy": strategy,
            "policy": policy,
            "median_s": 0.001 * n * batch,
            "iqr_s": 0.0002 * n,
            "speedup_vs_sdpa": speed,
            "speedup_low": speed - 0.01,
            "speedup_high": speed + 0.01,
            "degrees_of_freedom": 100,
            "rounds": 3,
            "ceiling": 1.5,
            "heads_replaced": 3 * (policy == "consistent"),
            "kl": 0.01 * (policy == "consistent"),
            "device": "cpu",
        }
        for n in lengths
        for phase in ("prefill", "decode")
        for batch in (1, 4)
        for strategy, policy, speed in (
            ("sdpa", "none", 1.0),
            ("sdpa", "again", 1.0),
            ("eager", "none", 0.5),
            ("reuse", "consistent", 1 + 0.001 * n),
        )
    ]
    return pd.DataFrame(rows)


def examples(n: int) -> list[ExampleMap]:
    uniform = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    return [ExampleMap("highest score", 1, 2, 0.97, uniform), ExampleMap("lowest score", 0, 0, 0.01, uniform[::-1])]


def simulated(lengths: list[int]) -> Figure:
    rng = np.random.default_rng(0)
    scores = rng.random((len(lengths), 3, 4))
    return simulated_figure("toy", lengths, scores, scores > 0.9)


STRANGE = [
    " the",
    "\n",
    "\t",
    "$x$",
    "$",
    "\\$",
    "a_b^c",
    "<&>",
    "--",
    "]]>",
    '"',
    "é",
    "\ufffd",
    "averyverylongtoken",
    "",
]
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "heatmap": lambda: score_heatmap(heads_table()),
    "heatmap, one head": lambda: score_heatmap(heads_table((0,), 1)),
    "heatmap, some undefined": lambda: score_heatmap(heads_table(mean_excess_score=[NAN] + [0.5] * 11)),
    "heatmap, one-token prompts": lambda: score_heatmap(heads_table(mean_excess_score=NAN, prompts=1, mean_tokens=1)),
    "heatmap, 32 layers": lambda: score_heatmap(heads_table(tuple(range(32)), 32)),
    "contour": lambda: contour_heatmap(heads_table(), 0.5),
    "contour, no sinks": lambda: contour_heatmap(heads_table(mean_sink_score=0.1), 0.5),
    "contour, only sinks": lambda: contour_heatmap(heads_table(mean_sink_score=1.0), 0.5),
    "layers": lambda: layer_bars(heads_table(), layers_table(), 0.9),
    "layers, one head": lambda: layer_bars(heads_table((0, 1), 1), layers_table((0, 1)), 0.9),
    "layers, one prompt": lambda: layer_bars(heads_table(), layers_table(score_low=NAN, score_high=NAN), 0.9),
    "lengths": lambda: length_figure(curves_table(30), 0.9),
    "lengths, one token": lambda: length_figure(curves_table(1), 0.9),
    "lengths, two tokens": lambda: length_figure(curves_table(2), 0.9),
    "lengths, one prompt": lambda: length_figure(curves_table(30, mean_excess_low=NAN, mean_excess_high=NAN), 0.9),
    "head curves": lambda: head_curves(30),
    "head curves, one token": lambda: head_curves(1),
    "head curves, many": lambda: head_curves(300, 16),
    "maps": lambda: maps_figure("tiny", "hello", STRANGE, examples(len(STRANGE)), 0.9),
    "maps, one token": lambda: maps_figure("tiny", "hello", ["a"], examples(1)[:1], 0.9),
    "maps, long": lambda: maps_figure("tiny", "hello", ["a"] * 60, examples(60), 0.9),
    "simulated": lambda: simulated([5, 10, 15]),
    "simulated, one length": lambda: simulated([5]),
    "comparison": lambda: comparison_figure(comparison_rows(("reference", "untrained"), ("short", "long")), "A title"),
    "comparison, many": lambda: comparison_figure(comparison_rows(tuple("abcdef"), tuple("uvwxyz")), "A title"),
    "comparison, below uniform": lambda: comparison_figure(comparison_rows(("a", "b"), ("x",), excess=-0.3), "A title"),
    "comparison, one setting": lambda: comparison_figure(comparison_rows(("a",), ("x",)), "A title"),
    "timing": lambda: timing_figure(benchmark_table()),
    "timing, one length": lambda: timing_figure(benchmark_table((24,))),
    "tradeoff": lambda: tradeoff_figure(benchmark_table()),
    "tradeoff, undefined": lambda: tradeoff_figure(benchmark_table().assign(speedup_vs_sdpa=NAN)),
    "timing, undefined": lambda: timing_figure(benchmark_table().assign(speedup_vs_sdpa=NAN)),
}


def written(draw: Callable[[], Figure], folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    save(draw(), folder / "a-1.5b.png")  # what follows a full stop in a model's name is no ending
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_figures_draw_without_warnings(draw):
    draw().canvas.draw()


@pytest.mark.parametrize(
    "name", ["heatmap", "contour", "layers", "lengths", "head curves", "maps", "simulated", "comparison", "timing"]
)
def test_the_same_data_give_the_same_bytes_whatever_the_settings_of_the_process(tmp_path, name):
    one = written(DRAWINGS[name], tmp_path / "one")
    other_settings = {
        "font.size": 20,
        "figure.titlesize": 30,
        "axes.titlesize": 30,
        "legend.frameon": True,
        "legend.fontsize": 20,
        "axes.spines.top": True,
        "savefig.dpi": 40,
        "svg.hashsalt": "other",
        "svg.fonttype": "none",
        "pdf.fonttype": 3,
        "pdf.compression": 0,
    }
    with mpl.rc_context(other_settings):
        again = written(DRAWINGS[name], tmp_path / "again")
    assert one == again
    assert sorted(one) == ["a-1.5b.pdf", "a-1.5b.png", "a-1.5b.svg"]
    title = " ".join(DRAWINGS[name]().get_suptitle().split())
    assert Image.open(io.BytesIO(one["a-1.5b.png"])).info["Title"] == title
    assert ET.fromstring(one["a-1.5b.svg"]).tag == "{http://www.w3.org/2000/svg}svg"
    assert one["a-1.5b.pdf"].startswith(b"%PDF")
    assert not re.search(rb"Date|Producer|/Type3", one["a-1.5b.pdf"])


def test_different_data_give_different_figures(tmp_path):
    one = written(lambda: layer_bars(heads_table(), layers_table(), 0.9), tmp_path / "one")
    other = written(lambda: layer_bars(heads_table(), layers_table(mean_null_score=0.5), 0.9), tmp_path / "other")
    assert not set(one.values()) & set(other.values())


@pytest.mark.parametrize("token", ["你好", "🙂", "\u05e9", "\x1b", "\r", "\u200b"])
def test_a_map_draws_tokens_of_any_script_without_warnings(token):
    maps_figure("tiny", "hello", [token, "b"], examples(2), 0.9).canvas.draw()


def test_a_map_with_control_characters_in_its_tokens_is_still_valid_svg(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = written(lambda: maps_figure("tiny", "hello", ["\x1b", "\x02"], examples(2), 0.9), tmp_path / "one")
    ET.fromstring(one["a-1.5b.svg"])


def test_score_heatmap_writes_every_value_and_leaves_undefined_ones_empty():
    figure = score_heatmap(heads_table((0, 2), 2, mean_sink_score=[0.1, 0.2, 0.3, 0.4], mean_excess_score=NAN))
    left, right = figure.axes[:2]
    assert [text.get_text() for text in left.texts] == [".10", ".20", ".30", ".40"]
    assert list(right.texts) == []
    np.testing.assert_array_equal(left.images[0].get_array(), [[0.1, 0.2], [0.3, 0.4]])
    assert [label.get_text() for label in left.get_yticklabels()] == ["0", "2"]
    assert "n = 3 prompts of 7 tokens" in " ".join(texts(figure))


def borders(inside: list[list[bool]]) -> set[tuple]:
    _, (axes,) = new_figure(2, 2)
    outline(axes, np.array(inside))
    return {tuple(sorted(zip(*line.get_data(), strict=True))) for line in axes.lines}


def test_the_outline_of_one_cell_is_its_four_sides():
    # A cell (layer, head) is the square of width 1 around (x = head, y = layer).
    corners = {"a": (1.5, 0.5), "b": (2.5, 0.5), "c": (1.5, 1.5), "d": (2.5, 1.5)}
    sides = {(corners[one], corners[other]) for one, other in ("ab", "cd", "ac", "bd")}
    assert borders([[False] * 4, [False, False, True, False]]) == sides


def test_the_outline_of_neighbours_has_no_line_between_them():
    """An L of three cells has a border of 8, and one ring around a hole 12 outside and 4 inside."""
    assert len(borders([[True, False], [True, True]])) == 8
    assert len(borders([[True, True, True], [True, False, True], [True, True, True]])) == 16
    assert borders([[False, False]]) == set()


def test_contour_counts_the_heads_at_or_above_the_threshold():
    figure = contour_heatmap(heads_table((0,), 4, mean_sink_score=[0.2, 0.5, 0.49, 0.9]), 0.5)
    assert "2 of 4 heads" in figure.get_suptitle()


def test_layer_bars_show_the_mean_of_each_layer_its_interval_and_every_head():
    heads = heads_table((0, 3), 2, mean_sink_score=[0.2, 0.4, 0.5, 1.0])
    layers = layers_table((0, 3), mean_sink_score=[0.3, 0.75], score_low=[0.25, NAN], score_high=[0.4, NAN])
    axes = layer_bars(heads, layers, 0.9).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.3, 0.75])
    (whisker,) = axes.containers[1].lines[2]
    assert np.concatenate(whisker.get_segments())[:, 1].tolist() == pytest.approx([0.25, 0.4])
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() != "None"]
    assert levels == [0.4, 0.9]  # the null score and the threshold
    dots = np.concatenate([line.get_ydata() for line in axes.lines if line.get_marker() == "o"])
    assert dots.tolist() == [0.2, 0.4, 0.5, 1.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "3"]


def test_length_figure_draws_the_curves_with_their_intervals():
    left, right = length_figure(curves_table(4), 0.9).axes
    mean, null, excess = (line.get_ydata() for line in right.lines[:3])
    assert null.tolist() == pytest.approx([1, 3 / 4, 11 / 18, 25 / 48])
    assert (mean - null).tolist() == pytest.approx([0.01] * 4)
    assert excess[1:].tolist() == pytest.approx([-0.02] * 3)
    curves = [line.get_ydata() for line in left.lines if line.get_label().startswith("score")]
    assert [curve.tolist() for curve in curves] == [pytest.approx([100, 50, 100 / 3, 25])] * 2
    drawn = left.collections[0].get_paths()[0].vertices
    assert {(1, 90), (2, 45), (3, 30), (1, 100), (3, 100)} <= {(round(x), round(y)) for x, y in drawn}
    assert drawn[:, 0].max() == 3  # from 4 tokens on the interval is undefined
    assert [label.get_text() for label in left.get_xticklabels()] == ["1\n4", "2\n3"]


def test_length_figure_marks_the_longest_length_at_which_uniform_attention_passes():
    left = length_figure(curves_table(30), 0.9).axes[0]
    marks = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "v"]
    # H_n / n is at 0.9 or more only for n = 1, and at 0.3 or more up to n = 9 (0.314; n = 10 gives 0.293).
    assert marks == [9, 1]


def test_head_curves_show_every_head_and_their_mean():
    axes = head_curves(10).axes[0]
    levels = [line.get_ydata()[0] for line in axes.lines]
    assert levels == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1.0, 0.6, 1.0, 0.9])
    assert "one of 6 heads" in texts(axes.figure)


def test_comparison_shows_a_dash_where_there_is_no_value_and_draws_no_bar():
    figure = comparison_figure(comparison_rows(("a", "b"), ("x", "y")), "A title")
    percent, excess, correlation = figure.axes
    assert [text.get_text() for text in percent.texts] == ["0", "12", "0", "12"]
    assert [text.get_text() for text in excess.texts] == ["–", "0.25", "0.25", "0.25"]
    assert [text.get_text() for text in correlation.texts] == ["–", "30", "30", "30"]
    assert [bar.get_height() for bar in correlation.patches] == [0, 30, 30, 30]
    assert "A title; sink score ≥ 0.9; prompts: n = 1; –: undefined" in texts(figure)


def test_comparison_tells_sides_apart_by_colour_and_by_hatch():
    axes = comparison_figure(comparison_rows(("a",), ("x", "y", "z")), "t").axes[0]
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches]
    assert [colour for colour, _ in looks] == [to_rgba(colour) for colour in COLOURS[:3]]
    assert len({hatch for _, hatch in looks}) == 3


def test_comparison_keeps_bars_below_zero_in_sight():
    axes = comparison_figure(comparison_rows(("a", "b"), ("x",), excess=-0.3), "t").axes[1]
    assert axes.get_ylim()[0] < -0.3


def test_simulated_figures_say_so_in_the_title_every_axis_title_and_every_panel():
    figure = simulated([5, 10])
    titles = [figure.get_supxlabel(), *(axes.get_ylabel() for axes in figure.axes)]
    assert {title for title in titles if title} == {"simulated head", "simulated layer", "simulated score"}
    assert figure.get_suptitle().startswith("SIMULATED, not measured: ")
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["SIMULATED"] * 4


def test_maps_escape_line_breaks_spaces_and_mathematics_in_tokens():
    figure = maps_figure("tiny", "hello", [" a b", "\n", "$x$"], examples(3), 0.9)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["␣a␣b", "⏎", r"\$x\$"]
    assert "highest score\nlayer 1, head 2: 0.97" in texts(figure)


def test_timing_shows_the_smallest_batch_with_a_panel_per_phase_and_policy():
    figure = timing_figure(benchmark_table())
    prefill, decode = figure.axes
    lines = [list(line.get_ydata()) for line in prefill.lines]
    assert [1.5, 1.5] in lines  # the ceiling
    assert [pytest.approx(1.024), pytest.approx(1.128)] in lines
    assert [(bar.get_y(), bar.get_height()) for bar in prefill.patches] == [pytest.approx((0.99, 0.02))] * 2
    assert "decoding" in decode.get_ylabel()
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["reuse", "eager", "ceiling", "not told from noise", "SDPA timed twice"]
    assert "tiny on cpu, batch 1; n = 3 rounds; bars: 95% intervals" in texts(figure)


@pytest.mark.parametrize(("counts", "said"), [((3, 3), "n = 3 rounds"), ((12, 3), "n = 3 to 12 rounds")])
def test_timing_says_how_many_rounds_the_compared_ways_had(counts, said):
    table = benchmark_table()
    table["rounds"] = table["n_tokens"].map(dict(zip((24, 128), counts, strict=True))).fillna(3)
    table.loc[table["strategy"] == "eager", "rounds"] = 1
    assert f"tiny on cpu, batch 1; {said}; bars: 95% intervals" in texts(timing_figure(table))


@pytest.mark.parametrize(
    ("low", "ceiling", "hollow"),
    [
        pytest.param(1.005, 1.5, True, id="noise"),
        pytest.param(1.011, 1.5, True, id="a gain, but not as one of four"),
        pytest.param(1.014, 1.009, True, id="more than its ceiling allows"),
        pytest.param(1.014, 1.5, False, id="a gain"),
    ],
)
def test_what_cannot_be_told_from_sdpa_timed_twice_is_hollow_and_no_line_leads_to_it(low, ceiling, hollow):
    table = benchmark_table()
    first = (table["strategy"] == "reuse") & (table["n_tokens"] == 24)
    table.loc[first, ["speedup_low", "ceiling"]] = low, ceiling
    lines = timing_figure(table).axes[0].lines
    (drawn,) = [line for line in lines if list(line.get_ydata())[:1] == [1.024] and line.get_marker() == "o"]
    assert (drawn.get_markerfacecolor() == "white") is hollow
    joined = [line for line in lines if list(line.get_ydata()) == [1.024, pytest.approx(1.128)]]
    assert any(line.get_linestyle() != "None" for line in joined) is not hollow


def test_the_tradeoff_joins_what_nothing_else_beats_beyond_noise():
    table = benchmark_table((24,))
    way = table["strategy"] == "reuse"
    table.loc[way, ["speedup_vs_sdpa", "speedup_low", "speedup_high"]] = (2.0, 1.9, 2.1)
    (panel,) = tradeoff_figure(table).axes
    assert list(panel.lines[0].get_xdata()) == [1e-8, 0.01]  # SDPA at no cost, drawn at the left end
    assert list(panel.lines[0].get_ydata()) == [1.0, 2.0]
    table.loc[way, "speedup_low"] = 1.0
    (panel,) = tradeoff_figure(table).axes
    assert list(panel.lines[0].get_xdata()) == [1e-8]


def test_a_study_without_maps_has_a_figure_that_says_so():
    figure = no_maps_figure("tiny")
    assert figure.get_suptitle().strip() == "No attention maps are stored"
