import numpy as np
import pandas as pd
import pytest
from planted_captures import capture_of

from sinkstudy.stats.profile import head_curves, layer_table
from sinkstudy.stats.resampling import Resampling

ONE_DRAW = Resampling(bootstrap=200, permutations=1, seed=0)


def score_rows(prompts: dict[str, list[list[float]]]) -> pd.DataFrame:
    """A score table from {prompt: scores (layer, head)}; layers are called 2, 5, ..."""
    return pd.DataFrame(
        {
            "model": "tiny",
            "prompt": prompt,
            "n_tokens": 10 * (i + 1),
            "layer": 3 * layer + 2,
            "head": head,
            "sink_score": score,
            "null_score": 0.1 * (i + 1),
            "is_sink": score >= 0.9,
        }
        for i, (prompt, layers) in enumerate(prompts.items())
        for layer, heads in enumerate(layers)
        for head, score in enumerate(heads)
    )


def parts(prompts: dict[str, list[list[float]]]) -> list[pd.DataFrame]:
    """The same, each prompt by itself."""
    return [part for _, part in score_rows(prompts).groupby("prompt")]


def test_layers_are_averaged_over_heads_and_prompts():
    table = layer_table(parts({"a": [[0.2, 0.4], [0.9, 1.0]], "b": [[0.4, 0.6], [0.0, 0.9]]}), ONE_DRAW)
    assert table["layer"].tolist() == [2, 5]
    assert table["mean_sink_score"].tolist() == pytest.approx([0.4, 0.7])
    assert table["sink_fraction"].tolist() == [0, 0.75]
    assert table[["heads", "prompts", "mean_tokens"]].to_numpy().tolist() == [[2, 2, 15]] * 2
    assert table["mean_null_score"].tolist() == pytest.approx([0.15, 0.15])


def test_intervals_of_layers_are_those_of_resampled_prompts():
    """With two prompts a quarter of the draws holds only one of them, so the interval reaches from one to the other."""
    table = layer_table(parts({"a": [[0.2, 0.4]], "b": [[0.4, 0.8]]}), ONE_DRAW)
    assert table[["score_low", "score_high"]].to_numpy().ravel().tolist() == pytest.approx([0.3, 0.6])


def test_one_prompt_has_no_interval():
    table = layer_table(parts({"a": [[0.2, 0.4]]}), ONE_DRAW)
    assert table[["score_low", "score_high"]].isna().all(axis=None)


def test_head_curves_average_the_prompts_that_reach_a_length():
    rng = np.random.default_rng(0)
    masses = [rng.random((2, 3, n), dtype=np.float32) for n in (4, 7, 4, 1)]
    captures = [capture_of(m, f"p{i}") for i, m in enumerate(masses)]
    lengths, scores, prompts = head_curves(captures)
    assert lengths.tolist() == list(range(1, 8))
    assert prompts.tolist() == [4, 3, 3, 3, 1, 1, 1]
    assert scores.shape == (2, 3, 7)
    for k in range(1, 8):
        expected = np.mean([m[..., :k].astype(float).mean(-1) for m in masses if m.shape[2] >= k], axis=0)
        np.testing.assert_allclose(scores[..., k - 1], expected)
