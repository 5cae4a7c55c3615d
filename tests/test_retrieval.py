"""Facts and passages that a model has to find again, where it is known what it finds."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import prompt_ids, tiny_model

from sinkstudy.attention import Plan, optimized
from sinkstudy.evaluation.retrieval import (
    DEPTHS,
    Context,
    answered,
    asked_texts,
    fact_contexts,
    planted,
    retrieval_table,
    right_answers,
    told_fact,
)
from sinkstudy.evaluation.variants import variants_of

N, CASES = 1100, 5
LAYERS = {layer: range(4) for layer in range(3)}
TEXT = prompt_ids(1500)[0].tolist()
WIDE = Plan(LAYERS, "sink_window", window=N, policy="wide")
NARROW = Plan(LAYERS, "sink_window", window=8, sink_tokens=1)
TOLD = "\nThe code of the "


def encode(text: str) -> list[int]:
    return [3 if letter == "\n" else ord(letter) - 24 for letter in text]


def decode(ids: list[int]) -> str:
    return "".join("\n" if i == 3 else chr(i + 24) for i in ids)


@pytest.fixture(scope="module")
def model():
    """In double precision, where other orders of the same sums differ by far less than what is told apart here."""
    return tiny_model("llama", vocab_size=128, max_position_embeddings=2048).double()


@pytest.fixture(scope="module")
def contexts():
    return fact_contexts(encode, TEXT, N, CASES)


@pytest.mark.parametrize("tokens", [900, 1400])
def test_texts_ask_at_their_end_for_what_they_tell_and_name_what_predicts_the_answers(tokens):
    texts = asked_texts(encode, TEXT, tokens)
    all_told = []
    for ids, predicting in texts:
        assert ids.shape[1] <= tokens
        text = decode(ids[0].tolist())
        told = [sentence.split(".\n")[0] for sentence in text.split(TOLD)[1:] if ".\n" in sentence]
        told_part, asked = text.rsplit(".\n", 1)
        asked = asked.split(TOLD)[1:]
        assert sorted(asked) == sorted(told)
        assert all(one in told_part for one in asked)
        # These queries predict the answers, in the order of the questions.
        answers = "".join(one.split(" is")[1] for one in asked)
        assert decode(ids[0, torch.tensor(predicting) + 1].tolist()) == answers
        all_told += told
    assert len(set(all_told)) == len(all_told) == 72
    later = {decode(told_fact(encode, case)[0]).split(TOLD)[1] for case in range(272)}
    assert not later & {f"{one}.\n" for one in all_told}


def test_texts_without_room_for_facts_ask_for_none():
    assert asked_texts(encode, TEXT, 100) == []


def test_facts_are_dealt_to_few_texts_and_each_is_told_once_at_its_depth(contexts):
    longest = max(len(told_fact(encode, case)[0]) for case in range(len(DEPTHS) * CASES))
    room = N // 4 // (len(DEPTHS) * longest)
    assert len(contexts) == -(-CASES // room) > 1
    asked = [question + answer for context in contexts for _, question, answer in context.asked]
    assert len({decode(one).split(" is ")[0] for one in asked}) == len(asked) == len(DEPTHS) * CASES
    assert Counter(depth for context in contexts for depth, _, _ in context.asked) == dict.fromkeys(DEPTHS, CASES)
    for context in contexts:
        ids = context.ids[0].tolist()
        assert ids[0] == TEXT[0]
        assert len(ids) + max(map(len, asked)) == N
        told = [told_at(ids, question + answer) for _, question, answer in context.asked]
        assert told == sorted(told)
        aims = [depth for depth, _, _ in context.asked]
        assert np.abs(np.array(told) / len(ids) - aims).max() <= 0.05
        assert decode(ids).count(TOLD) == len(told)


def told_at(ids: list[int], words: list[int]) -> int:
    (place,) = [i for i in range(len(ids)) if ids[i : i + len(words)] == words]
    return place


def test_texts_come_from_all_of_what_is_given(contexts):
    def without_facts(context):
        text = decode(context.ids[0].tolist())
        for _, question, answer in context.asked:
            text = text.replace(decode(question + answer) + ".\n", "")
        return text[1:]

    given = decode(TEXT)
    starts = [given.index(without_facts(context)) for context in contexts]
    assert starts[0] == 1
    assert all(later > earlier for earlier, later in pairwise(starts))
    assert starts[-1] == len(TEXT) - N + 1


def test_a_text_without_room_for_a_fact_at_each_depth_has_none():
    longest = max(len(told_fact(encode, case)[0]) for case in range(len(DEPTHS)))
    assert fact_contexts(encode, TEXT, 4 * len(DEPTHS) * longest - 1, 1) == []
    assert len(fact_contexts(encode, TEXT, 4 * len(DEPTHS) * longest, 1)) == 1


def test_things_and_numbers_are_each_asked_for_once():
    told = [decode(told_fact(encode, case)[1]) for case in range(272)]
    numbers = [decode(told_fact(encode, case)[2]) for case in range(272)]
    assert len(set(told)) == len(set(numbers)) == 272
    assert all(1000 <= int(number) <= 9999 for number in numbers)


def test_facts_lie_at_their_depths():
    ids = planted(list(range(50)), [[100 + i] * 2 for i in range(3)], [0.0, 0.5, 0.9])
    assert [ids.index(100 + i) for i in range(3)] == [1, 28, 50]
    assert [token for token in ids if token < 100] == list(range(50))


@pytest.mark.parametrize("plan", [Plan(), WIDE, NARROW, Plan({1: [0, 1], 2: [3]}, "sink_window", window=40)])
@torch.no_grad()
def test_an_answer_from_a_copied_cache_is_that_of_one_pass_over_everything(model, contexts, plan):
    with optimized(model, plan):
        found = answered(model, contexts)
    asked = [(context, *one) for context in contexts for one in context.asked]
    assert len(found) == len(asked)
    for row, (context, depth, question, answer) in zip(found.itertuples(), asked, strict=True):
        ids = [*context.ids[0].tolist(), *question, *answer]
        with optimized(model, plan):
            logs = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        here = [logs[len(ids) - len(answer) - 1 + i] for i in range(len(answer))]
        right = [one[token].item() for one, token in zip(here, answer, strict=True)]
        ranks = [1 + int((one > one[token]).sum()) for one, token in zip(here, answer, strict=True)]
        assert row.depth == depth
        assert row.log_prob == pytest.approx(np.mean(right), abs=1e-9)
        assert row.rank == np.mean(ranks)
        assert row.accuracy == (max(ranks) == 1)


def test_right_answers_are_counted_by_depth(model):
    """A question whose answer is what the model says is answered rightly, another is not."""
    ids = prompt_ids(30)
    with torch.no_grad():
        likely = model(torch.cat([ids, torch.tensor([[5, 6]])], 1)).logits[0, -1].argmax().item()
    asked = [(0.1, [5, 6], [likely]), (0.1, [5, 6], [likely]), (0.5, [5, 6], [likely]), (0.5, [5, 6], [likely - 1])]
    assert right_answers(model, [Context(ids, asked)]).to_dict() == {0.1: 2, 0.5: 1}
    assert right_answers(model, []).empty


@pytest.fixture(scope="module")
def table(model):
    plans = [WIDE, NARROW, replace(NARROW, min_tokens=N, policy="long")]
    return retrieval_table(model, "tiny", encode, TEXT, variants_of(model, plans, ["sink_window"]), [100, N], CASES)


def test_every_task_and_way_has_a_row(table):
    whole = table[table["n_tokens"] == N]
    assert whole.groupby("task")["cases"].agg(set).to_dict() == {"copy": {1}, "fact": {CASES}}
    assert (whole["policy"] == "none").sum() == (whole["policy"] == "by hand").sum() == 1 + len(DEPTHS)
    # The prompt that fills the cache decides whether a plan applies, and the question shortens it to below N.
    assert set(whole.loc[whole["policy"] == "long", "task"]) == {"copy"}
    assert set(table.loc[table["n_tokens"] == 100, "task"]) == {"copy"}  # no room for facts


def test_a_window_over_everything_finds_what_the_model_finds_and_a_narrow_one_does_not(table):
    found = table[table["n_tokens"] == N].pivot(index=["task", "depth"], columns="policy", values="log_prob")
    np.testing.assert_allclose(found["wide"], found["none"], atol=1e-9)
    assert ((found["by hand"] - found["none"]).abs() > 1e-4).all()


@torch.no_grad()
def test_a_copy_is_scored_on_its_second_half(model, table):
    ids = TEXT[: N // 2] * 2
    logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    right = [logs[i - 1, ids[i]].item() for i in range(N // 2 + 16, N)]
    row = table[(table["task"] == "copy") & (table["policy"] == "none") & (table["n_tokens"] == N)]
    assert row["log_prob"].item() == pytest.approx(np.mean(right), abs=1e-9)


def test_without_cases_there_is_no_row(model):
    assert retrieval_table(model, "tiny", encode, TEXT, [], [N], cases=0).empty
