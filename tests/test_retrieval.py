"""Facts and passages that a model has to find again, where it is known what it finds."""

import numpy as np
import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan
from sinkstudy.evaluation.retrieval import DEPTHS, retrieval_table
from sinkstudy.evaluation.variants import variants_of

LAYERS = {layer: range(4) for layer in range(3)}
TEXT = prompt_ids(200)[0].tolist()
PLANS = [Plan(heads=LAYERS, window=8, sink_tokens=1, policy="narrow"), Plan(heads=LAYERS, window=200, policy="wide")]


def encode(text: str) -> list[int]:
    return [3 + ord(letter) % 90 for letter in text]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table(model):
    return retrieval_table(model, "tiny", encode, TEXT, variants_of(model, PLANS, ["sink_window"]), [160], cases=2)


def test_every_task_and_way_has_a_row(table):
    assert len(table) == (1 + len(DEPTHS)) * 3
    assert table.set_index("task")["cases"].to_dict() == {"copy": 1, "fact": 2}


def test_a_window_over_everything_finds_what_the_model_finds_and_a_narrow_one_does_not(table):
    found = table.pivot(index=["task", "depth"], columns="policy", values="log_prob")
    np.testing.assert_allclose(found["wide"], found["none"], atol=1e-5)
    assert ((found["narrow"] - found["none"]).abs() > 1e-4).all()


@torch.no_grad()
def test_a_fact_is_told_once_and_its_answer_is_scored(model, monkeypatch):
    seen = []
    forward = type(model).forward

    def watched(self, input_ids, **named):
        result = forward(self, input_ids, **named)
        seen.append((input_ids[0].tolist(), result.logits))
        return result

    monkeypatch.setattr(type(model), "forward", watched)
    table = retrieval_table(model, "tiny", encode, TEXT, [], [160], cases=1)
    monkeypatch.undo()
    for (ids, _), row in zip([one for one in seen if len(one[0]) == 160], table.itertuples(), strict=True):
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        if row.task == "copy":
            assert ids[:80] == ids[80:]
            continue
        answer = encode(" 4817")
        told = encode("\nThe code of the blue safe is 4817")
        assert ids[-len(told) :] == told
        places = [i for i in range(160 - len(told)) if ids[i : i + len(told)] == told]
        assert places == [round(row.depth * (160 - 2 * len(told) - 2))]
        each = [logs[160 - len(answer) + i - 1, token].item() for i, token in enumerate(answer)]
        assert row.log_prob == pytest.approx(sum(each) / len(each), abs=1e-5)
        assert row.accuracy in (0, 1)
    assert retrieval_table(model, "tiny", encode, TEXT, [], [160], cases=0).empty
    assert set(retrieval_table(model, "tiny", encode, TEXT, [], [60], cases=1)["task"]) == {"copy"}  # no room for facts
