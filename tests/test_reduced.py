"""What captures are reduced to: the same tables however they are shared out; foreign and damaged files are refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_captures import planted_captures

from sinkstudy.measures.captured import Capture
from sinkstudy.stats.analysis import first_layer_statistics, head_statistics
from sinkstudy.stats.mechanism import activation_tables, mechanism_table
from sinkstudy.stats.positions import position_tables, sink_position_tables
from sinkstudy.stats.predictors import predictor_tables
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.reduction import Needs, reduce, reduced
from sinkstudy.stats.resampling import Resampling, drawn_sums, draws, ratio_intervals, ratio_intervals_of
from sinkstudy.stats.scores import score_tables
from sinkstudy.store.tables import LongTable, read_tables, write_long_table

LENGTHS, FEW = [2, 8, 12], Resampling(50, 50, 0)
NEEDS = Needs([0.5, 0.9], LENGTHS, [8])
PROMPTS = 30


@pytest.fixture(scope="module")
def captures() -> list[Capture]:
    """Prompts of three sets and of 12 to 16 tokens, that take turns; some positions and activations are known."""
    rng, sets = np.random.default_rng(0), ["a", "b", "a", "c"] * PROMPTS
    made = planted_captures(rng.random((PROMPTS, 3, 4)) < rng.random((3, 4)), 16, sets)
    for i, one in enumerate(made):
        n = 12 + i % 5
        cut = {name: getattr(one, name)[..., :n] for name in ("sink_mass", "token_ids")}
        cut |= {"key_mass": one.key_mass[:, :, :n], "tokens": [f"t{i}", ".", *one.tokens][:n]}
        cut |= {"activation": rng.uniform(1, 9, 3), "value_drain": rng.random((3, 4))}
        made[i] = Capture(**vars(one) | cut | {"position_mass": rng.random((3, 4, n)) if i % 3 else None})
    return made


def tables(found: Reduced) -> dict[str, pd.DataFrame]:
    made = first_layer_statistics(found, "m", LENGTHS, FEW) | head_statistics(found, "m", LENGTHS, LENGTHS, FEW)
    made |= predictor_tables(found, "m", [8], "prompt", FEW)
    made |= {"mechanism": mechanism_table(found, "m", FEW), "activations": activation_tables(found, "m")}
    made |= {"positions": position_tables(found, "m"), "sink_positions": sink_position_tables(found, "m")}
    made["scores"] = score_tables(found, "m", 0.9)
    return {name: one if isinstance(one, pd.DataFrame) else pd.concat(one) for name, one in made.items()}


def in_files(folder: Path, captures: list[Capture], size: int) -> list[Path]:
    paths = []
    for start in range(0, len(captures), size):
        paths.append(folder / f"{start:05d}.h5")
        reduce(paths[-1], iter(captures[start : start + size]), NEEDS, {"model": "m"})
    return paths


@pytest.mark.parametrize("size", [1, 7, PROMPTS])
def test_tables_are_the_same_for_every_size_of_shards(captures, tmp_path, size):
    whole, shared = tables(reduced(captures, NEEDS)), tables(Reduced(in_files(tmp_path, captures, size)))
    assert whole.keys() == shared.keys()
    for name, table in whole.items():
        pd.testing.assert_frame_equal(shared[name], table, check_exact=True, obj=name)


def test_tables_do_not_depend_on_how_many_prompts_are_read_at_once(captures, monkeypatch):
    whole = tables(reduced(captures, NEEDS))
    monkeypatch.setattr("sinkstudy.stats.reduced._PROMPTS_AT_ONCE", 7)
    for name, table in tables(reduced(captures, NEEDS)).items():
        texts = {column: str for column in ("model", "set", "prompt") if column in table}
        frames = (frame.reset_index(drop=True).astype(texts) for frame in (table, whole[name]))
        pd.testing.assert_frame_equal(*frames, rtol=1e-9, atol=1e-9, obj=name)


def test_sums_of_draws_and_intervals_are_those_of_all_prompts_at_once():
    rng = np.random.default_rng(1)
    part, whole = rng.integers(0, 9, (2, 23, 5)).astype(float)

    def blocks():
        return ((part[at : at + 4], whole[at : at + 4]) for at in range(0, 23, 4))

    drawn = np.random.default_rng(FEW.seed).multinomial(23, np.full(23, 1 / 23), size=FEW.bootstrap)
    for found, values in zip(drawn_sums(blocks, draws(23, FEW)), (part, whole), strict=True):
        np.testing.assert_allclose(found, drawn @ values, rtol=1e-12)
    for found, expected in zip(ratio_intervals_of(blocks, FEW), ratio_intervals(part, whole, FEW), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_files_of_other_captures_and_damaged_ones_are_refused_by_name(captures, tmp_path, refuses):
    first, second = in_files(tmp_path, captures, 15)
    reduce(tmp_path / "other.h5", iter(captures[15:]), NEEDS, {"model": "another"})
    with refuses(str(tmp_path / "other.h5"), str(first)):
        Reduced([first, tmp_path / "other.h5"])
    content = bytearray(second.read_bytes())
    second.write_bytes(content[: len(content) // 2])
    with refuses(str(second)):
        Reduced([first, second])


def test_a_long_table_is_the_same_from_parquet_and_from_csv_to_nine_digits(captures, tmp_path, monkeypatch):
    monkeypatch.setattr("sinkstudy.stats.reduced._PROMPTS_AT_ONCE", 7)
    found = reduced(captures, NEEDS)
    for name, parts in {"scores": score_tables(found, "m", 0.9), "positions": position_tables(found, "m")}.items():
        write_long_table(parts, tmp_path / name, tmp_path / f"{name}.csv")
        csv, parquet = read_tables([tmp_path / f"{name}.csv"]), pd.concat(LongTable([tmp_path / name]))
        frames = (frame.reset_index(drop=True) for frame in (parquet, csv))
        pd.testing.assert_frame_equal(*frames, rtol=1e-8, check_dtype=False)
        assert len(list((tmp_path / name).iterdir())) > 2
        assert len(pd.read_parquet(tmp_path / name)) == len(csv)
