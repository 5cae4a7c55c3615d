import base64
import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_captures import ATTRIBUTES, capture_of, made_up_capture, softmax_maps

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
from sinkstudy.prompts import Prompt
from sinkstudy.store import write_capture


def unpacked(kind: str, text: str, count: int) -> np.ndarray:
    """Differences back from a packed text, by the layout's description and not by the code that wrote it."""
    planes = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(-1, count)
    assert len(planes) == {"int16": 2, "int32": 4}[kind]
    return np.ascontiguousarray(planes.T).view({"int16": "<i2", "int32": "<i4"}[kind]).ravel()


def test_captures_are_open_one_at_a_time(tmp_path, monkeypatch):
    rng, page, opened_files = np.random.default_rng(0), tmp_path / "page.html", []
    paths = {model: [tmp_path / f"{model}{i}.h5" for i in range(2)] for model in "ab"}
    for model, files in paths.items():
        for i, path in enumerate(files):
            made_up_capture(path, model, {f"p{i}": softmax_maps(rng, 2, 2, 6), f"q{i}": softmax_maps(rng, 2, 2, 5)})

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
    prompts = [Prompt(name, "s", "text") for name in ("with", "without")]
    with write_capture(path, ATTRIBUTES | {"model": "m"}, ("first",), prompts) as writer:
        for prompt, positions in zip(prompts, (mass, None), strict=True):
            writer.add(capture_of(prompt, np.ones((2, 2, n, 1)), position_mass=positions))
    description, _ = read_study({"m": [path]}, [0.9], 0.9)
    found = [prompt["receivers"] for prompt in description["models"][0]["prompts"]]
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
