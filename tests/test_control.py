import pandas as pd
import pytest

from sinkstudy.stats.comparison import control_table
from sinkstudy.stats.resampling import Resampling
from sinkstudy.workflow.config import control_pairs

FEW = Resampling(bootstrap=300, permutations=20, seed=0)


def test_the_control_of_a_model_is_its_own_architecture_with_random_weights():
    models = {
        "a": {"source": "x", "random_weights": None},
        "b": {"source": "x", "random_weights": 0},
        "c": {"source": "y", "revision": "1", "random_weights": None},
        "d": {"source": "y", "revision": "2", "random_weights": 3},
    }
    assert control_pairs(models) == [("a", "b")]


def lengths(model: str, fractions: dict[str, float], excess: float) -> list[dict]:
    return [
        {"model": model, "prompt": p, "threshold": 0.9, "n_tokens": n, "sink_fraction": f, "mean_excess": excess}
        for p, f in fractions.items()
        for n in (2, 3)
    ]


def test_differences_are_taken_prompt_by_prompt_over_prompts_of_both():
    table = pd.DataFrame(
        lengths("m", {"a": 0.5, "b": 0.75, "only here": 1.0}, 0.4) + lengths("u", {"b": 0.25, "a": 0.0}, 0.1)
    )
    (row,) = control_table(table, [("m", "u")], [2, 24], FEW).to_dict("records")
    assert (row["model"], row["control"], row["n_tokens"], row["prompts"]) == ("m", "u", 2, 2)
    assert row["difference"] == pytest.approx(0.5)
    assert (row["ci_low"], row["ci_high"]) == (0.5, 0.5)  # each prompt differs by the same
    assert row["excess_difference"] == pytest.approx(0.3)


def test_a_study_without_controls_gives_a_table_without_rows():
    table = control_table(pd.DataFrame(lengths("m", {"a": 0.5}, 0.4)), [], [2], FEW)
    assert table.empty
    assert "excess_difference" in table
