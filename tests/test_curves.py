import numpy as np
import pytest
from planted_captures import capture_of

from sinkstudy.stats.curves import curve_table, weakening, weakening_table
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import null_score

FEW = Resampling(bootstrap=200, permutations=20, seed=0)
LENGTHS_OF = {"a": ("short", 3), "b": ("long", 7), "c": ("short", 5), "d": ("long", 7)}


@pytest.fixture(scope="module")
def captures():
    rng = np.random.default_rng(5)
    made = []
    for prompt, (set_name, n) in LENGTHS_OF.items():
        mass = rng.random((3, 4, n)) ** 0.4
        mass[..., 0] = 1
        made.append(capture_of(mass, prompt, set_name))
    return made


def test_curves_equal_a_loop_over_sets_thresholds_and_lengths(captures):
    table = curve_table(reduced(captures, Needs([0.6, 0.8], [])), "m", FEW)
    assert table["set"].drop_duplicates().tolist() == ["all", "short", "long"]
    rows = table.set_index(["set", "threshold", "n_tokens"])
    assert len(rows) == 2 * (7 + 5 + 7)
    for (name, threshold, n), row in rows.iterrows():
        members = [c for c in captures if name in ("all", c.set) and c.n_tokens >= n]
        scores = np.stack([c.sink_mass[..., :n].astype(float).mean(-1) for c in members])
        is_sink = scores >= threshold
        first = is_sink[:, 0]
        assert row["prompts"] == len(members)
        assert row["sink_fraction"] == pytest.approx(is_sink.mean())
        assert row["mean_score"] == pytest.approx(scores.mean())
        assert row["null_score"] == pytest.approx(null_score(n))
        assert row["first_layer_sinks"] == first.sum()
        assert row["p_later"] == pytest.approx(is_sink[:, 1:].mean())
        followed = [is_sink[p, 1:, h].mean() for p, h in np.argwhere(first)]
        assert row["p_later_given_first"] == pytest.approx(np.mean(followed) if followed else np.nan, nan_ok=True)
        if n == 1:
            assert np.isnan(row[["mean_excess", "mean_excess_low", "mean_excess_high"]].to_numpy(float)).all()
        else:
            null = null_score(n)
            assert row["mean_excess"] == pytest.approx(((scores - null) / (1 - null)).mean())


def test_intervals_of_the_curves_equal_a_plain_bootstrap_of_prompts():
    rng = np.random.default_rng(2)
    made = []
    for i in range(20):
        mass = rng.random((2, 8, 2)) ** rng.uniform(0.05, 2)
        mass[..., 0] = 1
        made.append(capture_of(mass, f"p{i}"))
    table = curve_table(reduced(made, Needs([0.8], [])), "m", Resampling(4000, 1, 0))
    row = table.query("set == 'all' and n_tokens == 2").iloc[0]
    fraction = np.array([(c.sink_mass.mean(-1) >= 0.8).mean() for c in made])
    drawn = fraction[np.random.default_rng(9).integers(0, 20, (4000, 20))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert row["sink_fraction_low"] == pytest.approx(low, abs=0.012)
    assert row["sink_fraction_high"] == pytest.approx(high, abs=0.012)


def test_a_length_that_one_prompt_reaches_has_no_interval():
    made = [capture_of(np.ones((2, 2, n)), f"p{n}") for n in (2, 4)]
    table = curve_table(reduced(made, Needs([0.9], [])), "m", FEW)
    rows = table.query("set == 'all'").set_index("n_tokens")
    low = rows["sink_fraction_low"]
    assert low[[1, 2]].tolist() == [1, 1]
    assert low[[3, 4]].isna().all()


def planted_curve(change: int, before: float, after: float, prompts: int = 30, lengths: int = 60) -> tuple:
    """Counts per prompt and length of 4 first-layer sinks among 8 heads, 5 later layers, followed as planted."""
    rng = np.random.default_rng(3)
    share = np.where(np.arange(lengths) < change, before, after)
    first = np.full((prompts, lengths), 4)
    both = rng.binomial(20, share, (prompts, lengths))
    return first, both, both + rng.binomial(20, 0.2, both.shape), np.ones_like(first)


def find(curve: tuple) -> dict:
    lengths = np.arange(2, 2 + curve[0].shape[1])
    return weakening(lambda: [curve], len(curve[0]), lengths, (5, 8), FEW)


def test_a_planted_change_of_the_correlation_is_found_within_its_interval():
    row = find(planted_curve(change=22, before=0.75, after=0.3))
    assert row["length_low"] <= 24 <= row["length_high"]
    assert abs(row["length"] - 24) <= 1
    assert row["before"] == pytest.approx(0.75, abs=0.02)
    assert row["after"] == pytest.approx(0.3, abs=0.02)
    assert row["fall_low"] < 0.45 < row["fall_high"]
    assert row["excess_before"] == pytest.approx(0.75 - (0.75 + 0.2) / 2, abs=0.02)


def test_a_correlation_that_rises_has_a_fall_below_zero():
    row = find(planted_curve(change=22, before=0.3, after=0.75))
    assert row["fall_high"] < 0


def test_the_split_is_the_one_of_least_squares_among_all():
    curve = planted_curve(change=9, before=0.6, after=0.5, prompts=3, lengths=20)
    first, both = (a.sum(0) for a in curve[:2])
    values, weights = both / (5 * first), first

    def squares(part: slice) -> float:
        mean = np.average(values[part], weights=weights[part])
        return (weights[part] * (values[part] - mean) ** 2).sum()

    best = min(range(1, 20), key=lambda k: squares(slice(k)) + squares(slice(k, None)))
    assert find(curve)["length"] == 2 + best


@pytest.mark.filterwarnings("error")
def test_without_first_layer_sinks_there_is_no_length_to_tell():
    first, both, later, reached = planted_curve(10, 0.5, 0.5)
    row = find((0 * first, 0 * both, later, reached))
    assert np.isnan([row[name] for name in ("length", "length_low", "before", "fall", "last_length")]).all()


@pytest.mark.filterwarnings("error")
def test_one_prompt_with_first_layer_sinks_gives_a_length_without_an_interval():
    curve = [a.copy() for a in planted_curve(22, 0.9, 0.1)]
    for counts in curve[:2]:
        counts[1:] = 0
    row = find(tuple(curve))
    assert abs(row["length"] - 24) <= 1
    assert np.isnan(row["length_low"])


@pytest.mark.filterwarnings("error")
def test_lengths_at_which_uniform_attention_is_a_sink_do_not_count():
    """At 0.3 that is every length up to 9; a model of one layer has no correlation at all."""
    rng = np.random.default_rng(0)
    made = [capture_of(rng.random((2, 3, 30)) ** 0.5, f"p{i}") for i in range(3)]
    weak = weakening_table(reduced(made, Needs([0.3], [])), "m", FEW)
    assert weak["length"].iloc[0] > 10
    weak = weakening_table(reduced([capture_of(rng.random((1, 3, 12)))], Needs([0.3], [])), "m", FEW)
    assert weak["length"].isna().all()
