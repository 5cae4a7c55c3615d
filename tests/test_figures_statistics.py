"""Figures of the statistics: what is drawn equals the tables, and nothing undefined looks like 0."""

import numpy as np
import pandas as pd
import pytest
from made_up import NAN, frame
from matplotlib.figure import Figure

from sinkstudy.figures.heldout import heldout_figure
from sinkstudy.figures.layer_pairs import layer_pair_figure
from sinkstudy.figures.persistence import persistence_figure, set_dependence_figure
from sinkstudy.figures.predictors import predictors_figure
from sinkstudy.figures.weakening import weakening_figure


def texts(figure: Figure) -> str:
    figure.draw_without_rendering()
    found = [text.get_text() for ax in figure.axes for text in [*ax.texts, ax.title, *ax.get_yticklabels()]]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    below = [text.get_text() for text in figure.artists]
    return "\n".join([*found, *(" ".join(text.split()) for text in (figure.get_suptitle(), *below))])


def pair_rows() -> pd.DataFrame:
    return frame(
        "model n_tokens threshold layer_a layer_b prompts p_b_given_a p_b ci_low",
        ("m", NAN, 0.9, 0, 1, 4, 0.75, 0.5, 0.6),
        ("m", NAN, 0.9, 0, 3, 4, 0.25, 0.5, 0.0),
        ("m", NAN, 0.9, 1, 0, 4, NAN, 0.25, NAN),
        ("m", NAN, 0.9, 1, 3, 4, NAN, 0.5, NAN),
        ("m", NAN, 0.9, 3, 0, 4, 1.0, 0.25, 0.6),
        ("m", NAN, 0.9, 3, 1, 4, 0.0, 0.5, 0.0),
    )


def test_layer_pairs_are_drawn_row_from_column_to_and_undefined_ones_crossed_out():
    figure = layer_pair_figure(pair_rows())
    share, beyond = (np.ma.filled(ax.images[0].get_array(), NAN) for ax in figure.axes[:2])
    np.testing.assert_array_equal(share, [[NAN, 0.75, 0.25], [NAN, NAN, NAN], [1, 0, NAN]])
    np.testing.assert_array_equal(beyond, [[NAN, 0.25, -0.25], [NAN, NAN, NAN], [0.75, -0.5, NAN]])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "1", "3"]
    assert texts(figure).count("×\n") == 4
    assert "no sinks in layer a" in texts(figure)
    assert "n = 4 prompts, whole prompts" in texts(figure)


def test_one_layer_has_no_other_to_be_drawn_beside():
    assert "A single layer attends" in texts(layer_pair_figure(pair_rows().head(0)))


def share_rows() -> pd.DataFrame:
    shares = {"x": (1.0, 1.0, 0.0), "y": (1.0, 0.5, 0.0), "all": (1.0, 0.75, 0.0)}
    rows = [
        ("m", n, 0.9, name, 0, head, 4 if name == "all" else 2, share, share / 2, (1 + share) / 2)
        for n in (10, 24)
        for name, values in shares.items()
        for head, share in enumerate(values)
    ]
    return frame("model n_tokens threshold set layer head prompts sink_share share_low share_high", *rows)


def test_persistence_shows_every_head_at_the_longest_length_and_in_order_at_each():
    rows = share_rows()
    figure = persistence_figure(rows[rows["set"] == "all"])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), [[100, 75, 0]])
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [[100, 75, 0]] * 2
    assert "24 tokens, n = 4" in texts(figure)


def set_curves() -> pd.DataFrame:
    return frame(
        "set n_tokens sink_fraction sink_fraction_low sink_fraction_high",
        ("x", 24, 0.625, NAN, NAN),
        ("y", 24, 0.5, 0.25, 0.75),
        ("y", 10, 0.9, 0.8, 1.0),
    )


def test_the_set_dependence_figure_shows_sets_at_one_length_and_heads_that_are_sinks_in_some_prompts():
    figure = set_dependence_figure(share_rows(), set_curves())
    points = {line.get_ydata()[0]: line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert points == {0: 62.5, 1: 50.0}
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), [[100], [50]])
    assert "x (n = 2)" in texts(figure)
    assert "1 of 1 heads" in texts(figure)
    assert "cut to 24 tokens" in texts(figure)


def test_prompts_too_short_give_a_figure_that_says_so():
    nothing = share_rows().iloc[:0]
    assert "No prompt is long enough" in texts(persistence_figure(nothing))
    assert "No prompt is long enough" in texts(set_dependence_figure(nothing, set_curves()))


def heldout_rows() -> pd.DataFrame:
    return frame(
        "model simulator held_out_half threshold n_tokens quantity layer prompts predicted measured ci_low ci_high",
        *(
            ("m", simulator, half, 0.9, n, "layer", layer, 3, layer / 4 + half / 8, 0.5, 0.25, 0.75)
            for simulator in ("formula", "calibrated")
            for half in (0, 1)
            for n in (2, 24)
            for layer in range(3)
        ),
        ("m", "formula", 0, 0.9, 2, "sink_fraction", NAN, 3, 0.9, 0.9, 0.9, 0.9),
    )


def test_predictions_are_lines_called_simulated_beside_measured_points():
    figure = heldout_figure(heldout_rows(), [2, 10, 24, 64])
    assert len(figure.axes) == 2
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["measured, half 1"].get_ydata(), 50)
    for name in ("SIMULATED: original formula", "SIMULATED: calibrated on the other half"):
        np.testing.assert_allclose(lines[name].get_ydata(), [6.25, 31.25, 56.25])  # the mean of both halves
    assert "n = 3 + 3 prompts" in texts(figure)


def test_without_held_out_prompts_the_figure_says_so():
    assert "too few prompts" in texts(heldout_figure(heldout_rows().iloc[:0], [2]))


def predictor_rows() -> pd.DataFrame:
    return frame(
        "model measure threshold n_tokens prompts predictor auc auc_low auc_high gain gain_low behind behind_low "
        "undefined",
        *(
            (
                "m",
                "score",
                0.9,
                n,
                33,
                name,
                auc,
                auc - 0.1,
                auc + 0.05,
                auc - 0.7,
                auc - 0.8,
                0.9 - auc,
                0.8 - auc,
                None,
            )
            for n in (2, 24, NAN)
            for name, auc in (("layer_base_rate", 0.7), ("record", 0.9), ("first_layer", 0.5), ("activation", 0.6))
        ),
    )


LEARNING = frame("n_tokens training_prompts auc auc_low auc_high", (24, 2, 0.9, 0.8, 0.95), (24, 1, 0.8, 0.7, 0.9))


def test_predictors_are_drawn_by_length_with_the_one_to_use_in_the_title():
    figure = predictors_figure(predictor_rows(), LEARNING)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines["a head's record on other prompts"].tolist() == [0.9, 0.9]
    assert lines["same head, first layer"].tolist() == [0.5, 0.5]
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [[0.8, 0.9]]
    assert "A head's record on other prompts tells later sinks (AUC 0.90); the first layer does not (0.50)" in texts(
        figure
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (predictor_rows().iloc[:0], "too few"),
        (predictor_rows().assign(auc=NAN, undefined="no head is a sink"), "no head"),
    ],
)
def test_predictors_that_could_not_be_judged_give_a_figure_that_says_so(rows, said):
    assert said in texts(predictors_figure(rows, LEARNING.iloc[:0]))


def curve_rows(**values: float) -> pd.DataFrame:
    bounds = {f"{name}_{end}": 0.5 for name in ("p_later", "p_later_given_first") for end in ("low", "high")}
    row = {"model": "m", "threshold": 0.9, "prompts": 4, "first_layer_sinks": 3, "p_later": 0.25} | bounds
    row |= {"p_later_given_first": 0.75} | values
    lengths = [1, 2, 24]
    return pd.DataFrame([row | {"n_tokens": n, "null_score": 1.0 if n == 1 else 0.5} for n in lengths])


def test_the_correlation_is_drawn_where_a_sink_is_more_than_uniform_attention_with_its_split():
    split = {"length": 24, "length_low": 2, "length_high": 24, "last_length": 24, "fall_low": -0.1}
    figure = weakening_figure(curve_rows(), pd.Series(split))
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["of first-layer sinks (correlation)"].get_xdata().tolist() == [2, 24]
    assert lines["of first-layer sinks (correlation)"].get_ydata().tolist() == [75, 75]
    assert "best split: 24 tokens (2 to 24)" in texts(figure)


@pytest.mark.filterwarnings("error")
def test_a_correlation_that_is_undefined_everywhere_is_said_to_be():
    undefined = pd.Series({"length": pd.NA, "length_low": pd.NA, "length_high": pd.NA, "last_length": NAN})
    figure = weakening_figure(curve_rows(first_layer_sinks=0, p_later_given_first=NAN), undefined)
    assert "undefined at every length" in texts(figure)
    assert [line.get_label() for line in figure.axes[0].lines] == ["of all heads (base rate)"]
