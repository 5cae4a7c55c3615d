"""Titles of figures: each says what the numbers say, and something else where they do."""

import numpy as np
import pandas as pd
import pytest
from made_up import NAN, frame

from sinkstudy.figures import messages


def heads(*excess: float) -> pd.DataFrame:
    return pd.DataFrame({"layer": [3, 3, 4, 4], "mean_excess_score": excess, "mean_sink_score": excess})


def curves(
    shares: tuple[float, ...], excess: tuple[float, ...], prompts: tuple[int, ...] = (9, 9, 3, 2)
) -> pd.DataFrame:
    """At 1 token uniform attention is itself a sink; the last length is reached by too few prompts."""
    rows = zip((1, 2, 50, 60), (0.9,) * 4, prompts, (1.0, 0.75, 0.1, 0.1), (1.0, *shares), (NAN, *excess), strict=True)
    return frame("n_tokens threshold prompts null_score sink_fraction mean_excess", *rows)


def mechanism(highest: float, low: float, p: float = 0.01) -> pd.DataFrame:
    rows = [("highest_excess", NAN, highest, NAN), ("activation_correlation", NAN, 0.66, low)]
    return frame("quantity layer value low", *rows, ("activation_p_value", NAN, p, NAN), ("activation", 0, 2.0, 1.0))


def predictors(first: float, gain_low: float, record_gain: float = 0.2) -> pd.DataFrame:
    return frame(
        "n_tokens predictor auc gain gain_low behind behind_low",
        (NAN, "layer_base_rate", 0.7, 0.0, 0.0, record_gain, record_gain),
        (NAN, "record", 0.9, record_gain, record_gain - 0.1, 0.0, 0.0),
        (NAN, "first_layer", first, first - 0.5, gain_low, 0.9 - first, 0.1),
    )


def weak(**values: float) -> pd.Series:
    fell = {"length": 8.0, "before": 0.75, "after": 0.25, "excess_fall": 0.5, "fall_low": 0.1, "excess_fall_low": 0.1}
    return pd.Series(fell | {"last_length": 20.0} | values)


def timed(speed: float, is_noise: bool) -> pd.DataFrame:
    row = ("prefill", 2048, 3, speed, is_noise, 0.002)
    names = "phase n_tokens heads_replaced speedup_vs_sdpa is_noise kl"
    return frame(names, row, ("decode", 24, 3, 0.5, False, 0.25), ("prefill", 24, 0, 2.0, False, 0.0))


def arms(low: float, high: float) -> pd.DataFrame:
    names = "arm n_tokens mean_excess excess_difference_low excess_difference_high"
    return frame(names, ("never", 24, 0.5, 0, 0), ("always", 24, 0.4, low, high), ("never", 99, 0.9, 0, 0))


def sides(*percents: float) -> pd.DataFrame:
    names = zip(("a", "a", "b", "b"), ("x", "y", "x", "y"), percents, strict=True)
    return frame("group side sink_percent", *names)


SHARES = pd.DataFrame({"first": [0.25, 0.5], "delimiter": [0.0, 0.25], "other": [0.0, 0.0]})
SINKS = np.array([[[True, True, True, False]], [[False, False, False, True]]])
PROMPTS, UNIFORM = np.array([9, 9, 3, 1]), np.array([1.0, 0.75, 0.6, 0.5])
SCORES = np.array([[[1, 0.95, 0.95, 0.2], [1, 0.9, 0.62, 0.9]]])  # (layer, head, length)
PAIRS = "layer_a p_b_given_a p_b ci_low"
LAYERS = frame("mean_sink_score mean_null_score", (0.95, 0.1), (0.5, 0.1), (0.15, 0.1))
SAID = [
    (
        messages.excess_by_head,
        (heads(0.5, 0.1, 0.9, 0.8),),
        "3 of 4 heads have a mean excess of 0.5 or more, 1 of them in layer 3",
    ),
    (messages.excess_by_head, (heads(0.4, 0.1, 0.3, 0.2),), "No head has a mean excess of 0.5: the highest is 0.40"),
    (messages.excess_by_head, (heads(NAN, NAN, NAN, NAN),), "Prompts of one token show no sinks"),
    (
        messages.score_by_head,
        (heads(0.1, 0.1, 0.9, 0.8), 0.9),
        "1 of 4 heads have a mean sink score of 0.9 or more, none of them in layer 3",
    ),
    (
        messages.score_by_layer,
        (LAYERS, 0.9),
        "2 of 3 layers score clearly above uniform attention (0.10), 1 of them 0.9 or more",
    ),
    (messages.score_by_layer, (LAYERS[2:], 0.9), "No layer scores clearly above uniform attention (0.10)"),
    (
        messages.over_lengths,
        (curves((0.8, 0.01, 0.5), (0.7, 0.69, 0)), 0.9),
        "Sinks at 0.9 vanish with length (80.0% to 1.0% of heads); excess does not (0.70 to 0.69)",
    ),
    (
        messages.over_lengths,
        (curves((0.8, 0.2, 0.5), (0.7, 0.35, 0)), 0.9),
        "Sinks at 0.9 fall with length (80.0% to 20.0% of heads); excess falls less (0.70 to 0.35)",
    ),
    (
        messages.over_lengths,
        (curves((0.8, 0.4, 0.5), (0.7, 0.07, 0)), 0.9),
        "Sinks at 0.9 fall with length (80.0% to 40.0% of heads); excess falls with them (0.70 to 0.07)",
    ),
    (
        messages.over_lengths,
        (curves((0.4, 0.8, 0.5), (0.5, 0.5, 0)), 0.9),
        "Sinks at 0.9 grow with length (40.0% to 80.0% of heads); excess stays (0.50 to 0.50)",
    ),
    (
        messages.over_lengths,
        (curves((0, 0, 0), (0.001, -0.001, 0)), 0.9),
        "No head is a sink at 0.9 where uniform attention is none; mean excess stays (0.00 to 0.00)",
    ),
    (
        messages.over_lengths,
        (curves((0, 0, 0), (0, 0, 0))[:2], 0.9),
        "Prompts are too short to show what length changes",
    ),
    (
        messages.by_head_over_lengths,
        (1 + np.arange(len(PROMPTS)), SCORES, PROMPTS, UNIFORM, 0.9),
        "Scores of 0.9 or more: 2 of 2 heads at 2 tokens, 1 at 3 (1 there clearly above uniform attention)",
    ),
    (messages.of_examples, ([0.97, 0.5, 0.01],), "One head puts 97% of its attention on the first token, another 1%"),
    (
        messages.activation,
        (mechanism(0.9, 0.5),),
        "Sinks come and go with the first token's activation (rank correlation over layers 0.66)",
    ),
    (
        messages.activation,
        (mechanism(0.9, -0.5),),
        "Sinks do not surely come and go with the first token's activation (rank correlation over layers 0.66)",
    ),
    (
        messages.activation,
        (mechanism(0.9, 0.5, p=0.2),),
        "Sinks do not surely come and go with the first token's activation (rank correlation over layers 0.66)",
    ),
    (messages.activation, (mechanism(0.25, 0.5),), "No sinks to explain: the highest mean excess of a head is 0.25"),
    (messages.positions, (SHARES,), "Of all sinks 75.0% at the first token, 25.0% at a delimiter"),
    (messages.positions, (SHARES * 0,), "No head has a sink at any token"),
    (
        messages.predictors,
        (predictors(0.5, -0.1),),
        "A head's record on other prompts tells later sinks (AUC 0.90); the first layer does not (0.50)",
    ),
    (
        messages.predictors,
        (predictors(0.6, 0.05),),
        "A head's record on other prompts tells later sinks (AUC 0.90); the first layer less (0.60)",
    ),
    (
        messages.predictors,
        (predictors(0.4, -0.1, record_gain=0.0),),
        "Nothing tells later sinks beyond their layer's rate",
    ),
    (
        messages.weakening,
        (weak(),),
        "The correlation with the first layer weakens at 8 tokens, by 50 points beyond its base rate",
    ),
    (
        messages.weakening,
        (weak(excess_fall_low=-0.1),),
        "The correlation falls from 75.0% to 25.0% at 8 tokens, and so does its base rate",
    ),
    (messages.weakening, (weak(fall_low=-0.1),), "The correlation with the first layer surely falls at no length"),
    (
        messages.weakening,
        (weak(fall_low=NAN),),
        "First-layer sinks are too few to tell where the correlation weakens",
    ),
    (
        messages.weakening,
        (weak(last_length=NAN),),
        "The first layer has no sinks, so there is no correlation to weaken",
    ),
    (
        messages.layer_pairs,
        (frame(PAIRS, (0, 0.9, 0.5, 0.4), (1, 0.9, 0.5, 0.6), (2, NAN, 0.5, NAN)),),
        "1 of 2 ordered pairs of layers share sinks beyond the base rate, none of them from layer 0",
    ),
    (
        messages.persistence,
        (pd.Series([1, 1, 0.5, 0]), 24),
        "Sinks at 24 tokens, of 4 heads: 2 in every prompt, 1 in some, 1 in none",
    ),
    (
        messages.by_set,
        (pd.Series({"code": 0.25, "long": 0.5}), 24),
        "At 24 tokens, sinks by set of prompts range from 25.0% of heads (code) to 50.0% of heads (long)",
    ),
    (messages.by_set, (pd.Series({"code": 0.4}), 24), "At 24 tokens, sinks are 40.0% of heads in code"),
    (messages.by_set, (pd.Series({"code": 0.0}), 24), "No head is a sink in any set of prompts at 24 tokens"),
    (
        messages.held_out,
        (
            frame(
                "simulator predicted measured",
                ("formula", 0.5, 0.25),
                ("formula", 0.0, 0.5),
                ("calibrated", 0.25, 0.25),
            ),
        ),
        "SIMULATED sinks per layer miss the measured ones: original formula by 37.5 points, calibrated by 0.0",
    ),
    (
        messages.timing,
        (timed(1.25, False),),
        "1 of 2 timed plans is faster than SDPA beyond noise, the fastest 1.25 times (prefill at "
        "2,048 tokens, KL 0.002)",
    ),
    (messages.timing, (timed(1.25, True),), "None of 2 timed plans is faster than SDPA beyond noise"),
    (messages.timing, (timed(1.25, True)[2:],), "No heads were replaced, so only the baselines were timed"),
    (
        messages.tradeoff,
        (timed(0.75, False),),
        "None of 2 timed plans is faster than SDPA beyond noise; their KL is 0.002 to 0.2",
    ),
    (
        messages.bos,
        (arms(-0.2, -0.1),),
        "A first special token changes the sinks: mean excess at 24 tokens 0.50 (never), 0.40 (always)",
    ),
    (
        messages.bos,
        (arms(-0.2, 0.1),),
        "A first special token does not surely change the sinks: mean excess at 24 tokens 0.50 (never), 0.40 (always)",
    ),
    (
        messages.simulated,
        ([5, 25], SINKS),
        "SIMULATED, not measured: sinks are 75.0% of heads at 5 tokens and 25.0% of heads at 25 tokens",
    ),
    (messages.comparison, (sides(10, 20, 80, 5),), "Sink heads differ most for b: 80.0% (x), 5.0% (y)"),
    (messages.comparison, (sides(10, NAN, 80, NAN),), "Sinks are 10.0% of heads (a) to 80.0% (b)"),
    (messages.comparison, (sides(40, NAN, 40, NAN),), "Sinks are 40.0% of heads throughout"),
    (messages.comparison, (sides(40, 40, NAN, NAN),), "Sinks are 40.0% of heads (a)"),
]


@pytest.mark.parametrize(("say", "given", "said"), SAID)
def test_a_title_says_what_the_numbers_say(say, given, said):
    assert say(*given) == said
