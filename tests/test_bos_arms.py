"""The same prompts without a beginning-of-sequence token, with it, and with two."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from toy import PROMPTS, toy

from sinkstudy.capture.recording import record
from sinkstudy.figures.bos_arms import bos_figure
from sinkstudy.models.loading import bos_arms
from sinkstudy.stats.bos_arms import arm_rows, bos_arm_table
from sinkstudy.stats.prefixes import prefix_scores
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store import read_captures

RESAMPLING = Resampling(200, 10, 0)


@pytest.fixture(scope="module")
def loaded():
    return toy()


def test_settings_of_bos_are_compared_over_the_same_prompts(loaded, tmp_path):
    arms, rows, expected = ["never", "always", "double"], [], {}
    for arm, model in bos_arms(loaded, arms).items():
        record(tmp_path / f"{arm}.h5", "m", model, PROMPTS, maps_max_tokens=0, max_tokens=12)
        captures = list(read_captures([tmp_path / f"{arm}.h5"]))
        rows += arm_rows(captures, arm, 0.5, [2, 10])
        starts = [capture.token_ids[:3].tolist().count(loaded.tokenizer.bos_token_id) for capture in captures]
        assert starts == [arms.index(arm)] * 3
        assert max(capture.n_tokens for capture in captures) == 12
        for n in (2, 10):
            scores = {c.prompt: prefix_scores(c.sink_mass)[..., n - 1] for c in captures if c.n_tokens >= n}
            expected[arm, n] = scores
    table = bos_arm_table(rows, "m", RESAMPLING).set_index(["arm", "n_tokens"])
    for (arm, n), row in table.iterrows():
        shared = set.intersection(*(set(expected[one, n]) for one in arms))
        scores = [expected[arm, n][prompt] for prompt in sorted(shared)]
        assert row["prompts"] == len(scores)
        assert row["mean_score"] == pytest.approx(np.mean(scores))
        assert row["sink_fraction"] == pytest.approx(np.mean(np.array(scores) >= 0.5))
        assert row["excess_difference"] == pytest.approx(row["mean_excess"] - table.loc[("never", n), "mean_excess"])
    assert table.loc["double", "first_token"].tolist() == [loaded.tokenizer.bos_token] * 2
    assert table.loc["never", "first_token"].isna().all()
    strongest = [f"strongest_{position}" for position in range(4)]
    np.testing.assert_allclose(table.xs(10, level="n_tokens")[strongest].sum(axis=1), 1)
    bos_figure(table.reset_index())


def test_a_tokenizer_without_bos_is_compared_only_where_it_can_be(loaded):
    without = replace(loaded, tokenizer=SimpleNamespace(bos_token_id=None))
    assert list(bos_arms(without, ["auto", "never", "always", "double"])) == ["auto", "never"]
