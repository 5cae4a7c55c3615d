"""Planted sinks are what they were told to be, by eager attention."""

import numpy as np
import pytest
import torch
from tiny import eager_maps, planted_config

from sinkstudy.capture import sink_mass
from sinkstudy.errors import StudyError
from sinkstudy.reference.planted import plant_sinks, planted_ids
from sinkstudy.stats.prefixes import prefix_scores
from sinkstudy.stats.scores import excess_score, null_score

CONFIG = planted_config(max_position_embeddings=4096)


@pytest.mark.parametrize("n", [24, 200])
@pytest.mark.parametrize("strength", [0.6, 0.93, 0.99])
def test_planted_strengths_are_met_and_other_heads_stay_near_uniform(n, strength):
    planted = np.random.default_rng(n).random((4, 8)) < 0.4
    model = plant_sinks(CONFIG, planted * strength, n_tokens=n)
    score = eager_maps(model, planted_ids(CONFIG, n))[:, 0, :, :, 0].mean(-1).numpy()
    np.testing.assert_allclose(score[planted], strength, atol=0.03)
    excess = excess_score(score, null_score(n))
    assert np.abs(excess[~planted]).max() < 0.05


def test_every_planted_head_is_found_at_any_length_by_excess_and_not_by_raw_score():
    planted = np.random.default_rng(1).random((4, 8)) < 0.3
    model = plant_sinks(CONFIG, planted * 0.99, n_tokens=512)
    mass = sink_mass(model, planted_ids(CONFIG, 512)).numpy()
    for n in (2, 24, 512):
        excess = excess_score(prefix_scores(mass)[..., n - 1], null_score(n))
        assert ((excess >= 0.9) == planted).all()


def test_bos_is_first_and_nowhere_else():
    ids = planted_ids(CONFIG, 4000)[0]
    assert ids[0] == 7
    assert 7 not in ids[1:]
    assert set(ids.tolist()) == set(range(50))


def test_a_strength_of_another_shape_is_refused():
    with pytest.raises(StudyError, match=r"of shape \(4, 8\)"):
        plant_sinks(CONFIG, np.zeros((8, 4)), n_tokens=10)


def test_planting_is_reproducible():
    one, two = (plant_sinks(CONFIG, np.full((4, 8), 0.5), 30, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_every_planted_head_of_a_1b_shape_is_found_and_no_other():
    config = planted_config(
        vocab_size=512,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        bos_token_id=0,
    )
    planted = np.random.default_rng(0).random((16, 32)) < 0.3
    mass = sink_mass(plant_sinks(config, planted * 0.99, n_tokens=512), planted_ids(config, 512)).numpy()
    for n in (2, 24, 512):
        excess = excess_score(prefix_scores(mass)[..., n - 1], null_score(n))
        assert ((excess >= 0.9) == planted).all(), n
    raw = prefix_scores(mass)[..., 1]
    assert raw[~planted].max() > 0.7  # on two tokens the raw score of a head that is no sink is high all the same
