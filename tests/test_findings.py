"""The findings as Markdown and as a page: numbers of tables with their sources, and text that others wrote."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
from browser import opened
from hypothesis import given
from hypothesis import strategies as st
from made_up import FIGURES, NAN, PROVENANCE, frame, study, with_tables
from markdown_it import MarkdownIt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sinkstudy.findings import markdown
from sinkstudy.findings.html import html
from sinkstudy.findings.text import code, finalize, link, note, number_footnotes, percent, show, visible
from sinkstudy.findings.verdicts import judge, view

CUT = "model prompt text_tokens n_tokens"


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    (part,) = [part for part in text.split("\n## ") if part.startswith(heading)]
    return part


def tables_in(text: str, heading: str) -> list[list[dict[str, str]]]:
    """The rows of every table under a heading, without footnote marks."""
    found = []
    for block in section(re.sub(r"\[\^\d+\]", "", text), heading).split("\n\n"):
        split = [[c.strip() for c in line.strip("|").split("|")] for line in block.splitlines() if line.startswith("|")]
        if split:
            found.append([dict(zip(split[0], row, strict=True)) for row in split[2:]])
    return found


def values(text: str, heading: str, row: int = 0, table: int = 0) -> list[str]:
    return list(tables_in(text, heading)[table][row].values())


def assert_no_nan(text: str) -> None:
    assert not re.search(r"\b(nan|NaN|None|inf|NaT)\b|<NA>", text)


@pytest.fixture(scope="module")
def text() -> str:
    return markdown(study())


NUMBERS = [
    (
        "# Attention sinks",
        0,
        "Heads that are sinks (score of at least 0.9 over 24 tokens)|75.00%|undefined|"
        "mean excess over uniform attention 0.76 (undefined)",
    ),
    (
        "# Attention sinks",
        1,
        "Later layers that follow a first-layer sink (at 24 tokens)|74.04%|59.38% to 90.62%|"
        "base rate 40.62%, p = 0.016",
    ),
    (
        "# Attention sinks",
        2,
        "Area under the ROC curve of the head's own record (its mean score on other prompts)|0.938|0.875 to 0.969|"
        "the same head of the first layer 0.531; chance 0.5",
    ),
    ("Beside the", 0, "Big-1B, published|2|0.9|512|366 (71.48%)|0.750|74.04%|–"),
    ("Beside the", 1, "sinky: hello|2|0.9|8|6 (75.00%)|0.750|74.04%|40.62%"),
    ("Beside the", 2, "Big-1B, published|24|0.9|undefined|undefined (22.85%)|0.157|undefined|–"),
    ("Beside the", 3, "sinky: fox|30|0.9|8|6 (75.00%)|0.133|74.04%|40.62%"),
    ("Results: sinky", 0, "all|2|16.0|8|6|75.00%|0.938|0.438|0.762|74.04%|40.62%"),
    ("Results: plain", 2, "long|1|30.0|8|0|0.00%|0.250|0.438|0.203|undefined|12.50%"),
    ("Impact of", 0, "sinky|2|2|75.00%|6.25% to 93.75%|0.938|0.750|0.762|-0.250 to 0.812"),
    ("Impact of", 1, "sinky|24|1|75.00%|undefined|0.938|0.157|0.762|undefined"),
    (
        "Against the",
        0,
        "sinky|plain|2|2|75.00% (0.00%)|75.00% (50.00% to 100.00%)|0.750 (0.125)|0.625 (0.562 to 0.688)",
    ),
    ("Against the", 1, "sinky|plain|24|1|75.00% (0.00%)|75.00% (undefined)|0.750 (0.125)|0.625 (undefined)"),
    ("Strength of", 1, "sinky|short|0.9|6|74.04%|59.38% to 90.62%|40.62%|1.823|0.531|0.0156"),
    ("Strength of", -1, "plain (control)|all|0.9|0|undefined|undefined|12.50%|undefined|undefined|undefined"),
    (
        "What tells",
        2,
        "sinky|the head's own record (its mean score on other prompts)|0.938|0.875 to 0.969|0.188|0.125 to 0.250|0.188|"
        "0.062|87.50%|81.25%",
    ),
    ("Where the", 0, "sinky|fox|',' (delimiter)|7|30|1|1|0.438|0.062"),
    ("With and", 0, "sinky|never|the text's|2|2|37.50%|0.500|0.750|0.250|0.000 (0.000 to 0.000)|–"),
    (
        "With and",
        3,
        r"sinky|always|\<s\>|24|2|37.50%|0.625|0.157|0.375|0.125 (0.125 to 0.125)|62.50%, 25.00%, 12.50%, 0.00%",
    ),
    ("Layer by", 0, "sinky|0|1|6|78.12%|59.38% to 90.62%|40.62%|1.923|0.531"),
    ("Consistent", 0, "sinky|24|4 (2)|4|1|2|1|1|1"),
    ("Consistent", 1, "plain (control)|24|4 (2)|1|0|0|1|0|0"),
    ("Simulated", -1, "5|simulated toy|simulated|18.75%|0.531|15.62%"),
    ("Simulated", 1, "5|plain|measured|43.75%|0.562|undefined"),
    ("Which sim", 0, "sinky|formula|yes|40.62%|31.25%|21.88%|1.56%|0.00781"),
    ("Which sim", 1, "sinky|calibrated|no|3.12%|1.56%|undefined|1.56%|0.25"),
    (
        "Replacing",
        2,
        "sinky|prefill|24|1|first_value|consistent|3 (37.50%)|4.69 ± 0.31|1.53|1.50 to 1.56|2.28|1.66|1.6e-03|99.22%|"
        "× 1.002",
    ),
    ("Published", 2, r"first 128 queries|a head|counted|first 128|\>=|–|–|–|–|–"),
    ("What it cost", 0, "capture|3|31.8 s|20.2 s (sinky/00001)|43.0 s|1001 MiB (plain/00000)"),
    ("What it cost", 1, "plans|2|0.2 s|0.1 s (plain/first_layer)|too short to sample|too short to sample"),
]


PUBLISHED = [
    "sink fraction|Big-1B|71.48%|75.00%|agrees: Big-1B lies 3.5 points below sinky, another model on other text|"
    "study|0.9|2|all|366 of 512 heads|the original study|no",
    "correlation|Big-1B|74.04%|65.62%|agrees: Big-1B lies 8.4 points above sinky, another model on other text|"
    "study|0.9|2|all|one prompt|the original study|no",
    "sink fraction|Big-1B|22.85%|–|not comparable: here no prompts of set all at this length and threshold|"
    "study|0.9|24|all|one sentence|the original study|no",
    "sink fraction|Big-8B|99.02%|50.00%|differs: Big-8B lies 49.0 points above sinky, another model on other text|"
    "gu|0.3|64|all|100 texts|[a paper](<https://x.org>)|in the abstract",
    "sink fraction|Big-8B|45.97%|–|not comparable: the length is not given|"
    "gu|0.8|–|all|not given|[a paper](<https://x.org>)|in the abstract",
    "decode speedup|GQA|1.5 ×|–|not comparable: speed is measured here by the plans of this study, on this machine|"
    "–|–|–|–|up to|[a paper](<https://x.org>)|in the abstract",
]


def test_published_figures_agree_differ_or_cannot_be_compared_and_say_why(text):
    assert ["|".join(row.values()) for row in tables_in(text, "Published")[1]] == PUBLISHED


def test_the_moving_window_of_queries_is_said_in_a_number(text):
    """Of 0.625 - 0.125 that the sinks lose, 0.25 - 0.125 come from queries after the first 128."""
    assert "this moving window makes 25.00% of the fall" in " ".join(section(text, "Published").split())


@pytest.mark.parametrize(("heading", "row", "cells"), NUMBERS, ids=[f"{h[:9]} {row}" for h, row, _ in NUMBERS])
def test_every_table_prints_the_numbers_of_its_result_table(text, heading, row, cells):
    assert values(text, heading, row) == cells.split("|")


@pytest.mark.parametrize(("policy", "named"), [("first_layer", True), ("consistent", False), ("layerwise", False)])
def test_only_reuse_where_the_first_layers_head_is_a_sink_is_called_the_original_proposal(policy, named):
    tables = study()
    rows = tables["benchmark"].assign(strategy=tables["benchmark"]["strategy"].replace("first_value", "reuse"))
    rows.loc[rows["strategy"] == "reuse", "policy"] = policy
    assert ("original proposal" in markdown(with_tables(tables, benchmark=rows))) is named


def test_a_model_of_the_simulated_size_stands_beside_it_over_length_and_layer_by_layer(text):
    assert ["|".join(row.values()) for row in tables_in(text, "Simulated")[1]] == [
        "5|all|2|62.50%|56.25% to 68.75%|21.88%",
        "5|0|2|75.00%|62.50% to 87.50%|25.00%",
        "5|1|2|50.00%|37.50% to 62.50%|18.75%",
    ]
    said = " ".join(section(text, "Simulated").split())
    assert "describe sinky? **No, it is rejected**: its sink fraction per layer errs by 40.62 percentage points" in said
    assert "95% intervals of what was measured reach 12.50 to either side" in said


def test_quality_by_set_is_at_the_largest_length_with_replaced_heads_and_answers_are_counted(text):
    _, skipping, quality, answers = tables_in(text, "Replacing")
    assert ["|".join(row.values()) for row in skipping] == [
        "sinky|consistent|first_value|24|8|the policy|3|3|1.6e-03|1.0e-03 to 2.0e-03|0 to 0|× 1.0016|1.0000 to 1.0030",
        "sinky|consistent|first_value|24|8|lowest sink score|3|0|1.2e-01|6.2e-02 to 2.5e-01|6.0e-02 to 2.4e-01|"
        "× 1.2500|1.1000 to 1.4000",
        "sinky|consistent|first_value|24|8|chance|3|0.5|6.2e-02|3.0e-02 to 1.2e-01|2.0e-02 to 1.2e-01|× 1.1000|"
        "1.0000 to 1.2000",
    ]
    assert ["|".join(row.values()) for row in quality] == [
        "sinky|code|128|2|first_value|2.5|2.5e-01|75.00%|87.50%|× 1.250",
        "sinky|long|24|2|reuse|3|1.2e-01|75.00%|87.50%|× 1.250",
    ]
    assert ["|".join(row.values()) for row in answers] == [
        "sinky|first_value|consistent|2|128|50.00%|40",
        "sinky|reuse|consistent|1|128|100.00%|none",
    ]


def test_a_budget_says_which_heads_are_cheap_and_from_which_length_its_plan_gains():
    made = study()
    priced = (("sink_window", 512), ("first_value", NAN))
    costs = [("sinky", *one, n, h, h, 2.0**-h, 2.0**-h) for one in priced for n in range(2) for h in range(4)]
    of_heads = (
        ("mean_sink_score", -0.25),
        ("mean_excess_score", 0.125),
        ("mean_output_norm", NAN),
        ("value_drain", 0.5),
    )
    window = {"strategy": "sink_window", "policy": "budget", "speedup_vs_sdpa": 1.125}
    lengths = [made["benchmark"].assign(n_tokens=n).to_dict("records") for n in (512, 4096)]
    for (*_, timed), low in zip(lengths, (0.75, 1.0625), strict=True):
        timed |= window | {"speedup_low": low, "speedup_high": 1.25}
    spent = with_tables(
        made,
        head_costs=frame("model strategy window layer head kv_head cost kv_head_cost", *costs),
        cost_stand_ins=frame(
            "model strategy window property spearman", *(("sinky", *by, *one) for by in priced for one in of_heads)
        ),
        benchmark=pd.concat([made["benchmark"], *map(pd.DataFrame, lengths)], ignore_index=True),
    )
    text = re.sub(r"\[\^\d+\]", "", markdown(spent))
    assert "| sinky | first_value | all | 8 | 2.5e-01 |" in text
    assert "| sinky | sink_window | 512 | 8 | 2.5e-01 | 7.5e-01 | 3.8e+00 | -0.25 | 0.12 | undefined | 0.50 |" in text
    assert "the plan of policy budget replaces 3 heads (37.50%) by windows." in text
    assert "Prefill at 4096 tokens, batch 1: 1.12 times SDPA's speed (95% interval 1.06 to 1.25)" in text
    assert "The prefill gains from 4096 tokens on" in text
    assert 'Plan.load("results/plans/sinky/budget.json")' in text
    assert "### Which heads are cheap" not in markdown(made)
    beyond = "Policy budget found no plan of 25.00% of its heads that keeps the perplexity at × 1.010 or below"
    assert beyond not in text
    short = spent["benchmark"]["n_tokens"] == 512
    dear = spent["benchmark"].assign(perplexity_ratio=spent["benchmark"]["perplexity_ratio"].mask(short, 1.0625))
    for benchmark in (dear, spent["benchmark"].assign(head_fraction=0.125), made["benchmark"]):
        assert beyond in markdown(with_tables(spent, benchmark=benchmark))


SENTENCES = [
    ("# Attention sinks", "It has attention sinks."),
    (
        "# Attention sinks",
        "A sink in the first layer predicts later ones; the head's own record (its mean score on other prompts) does "
        "so better.",
    ),
    ("# Attention sinks", "Sink heads can be skipped, more cheaply than others."),
    ("# Attention sinks", "Replacing heads pays."),
    (
        "# Attention sinks",
        "Use `results/plans/sinky/consistent.json` (first_value) for prefill from 24 tokens on: 1.53",
    ),
    ("Verdicts", "weaken with length? **Yes**: it weakens at 8 tokens (95% interval 5 to 12)"),
    ("Verdicts", "predictor of later sinks? **Yes**: use the head's own record"),
    ("Results: sinky", "`models/tiny` (0123abc), float32, bos auto, cpu."),
    ("Results: sinky", "perplexity on the held-out text is 23.44 per token."),
    ("Results: plain", "A control: "),
    (
        "Where the",
        "- **sinky**: of 4 cases (head and prompt) with a sink, 75.00% have it at the first token, 25.00% have it at a "
        "delimiter, 0.00% have it at another token.",
    ),
    ("What tells", "; a record of 2 prompts is as good as one of all."),
    ("What tells", "- **plain (control)**: no head is a sink in later layers at any length"),
    ("Where the", "- **plain (control)**: no position is a sink"),
    ("Why sinks", "it sets in at layer 1, and the first layer, where it is 0.94 times, cannot predict"),
    ("Why sinks", "Values of its 3 sink heads (mean excess of at least 0.5) have 0.156 of the others' norm"),
    ("Layer by", "- **sinky**: 2 of 3 ordered pairs of layers agree beyond the base rate; without any sink, and so"),
    ("Simulated", "- **simulated toy**: the formula of the original study."),
    ("Replacing", "on CPU, all variants"),
    (
        "Replacing",
        "  - prefill at 24 tokens: 1 of 1 harmless ways are surely faster, and the fastest of them (first_value",
    ),
    ("Replacing", "a prefill of 24 tokens, which bounds what replacing heads can save: 12.50%"),
    (
        "Exactness",
        "- **sinky**: largest difference from eager attention 6.0e-08 (prompt `fox`, 30 tokens), over 2 recomp",
    ),
    (
        "Exactness",
        "- **plain (control)**: largest difference from eager attention 2.0e-07 (prompt `fox`, 30 tokens), over 1",
    ),
    ("What it cost", "32 s in 5 jobs, the largest 1001 MiB"),
]


@pytest.mark.parametrize(("heading", "said"), SENTENCES)
def test_sentences_hold_the_numbers_and_verdicts_of_the_tables(text, heading, said):
    assert said in re.sub(r"\[\^\d+\]", "", section(text, heading))


def test_undefined_values_are_called_so_and_are_never_nan(text):
    assert_no_nan(text)


def test_every_row_and_every_verdict_says_which_rows_of_which_table_it_comes_from(text):
    body, notes = text.split("\n\n[^1]: ")
    body = re.sub(r"^\|.*\n(?=\| ---)", "", body, flags=re.M)  # heads of tables
    lines = [line for line in body.splitlines() if re.match(r"\| (?!---)|\s*- ", line) and re.search(r"\d", line)]
    assert len(lines) > 60
    for line in lines:
        assert re.search(r"^\| [^|]*\[\^\d+\] \||\[\^\d+\]$", line), line
    listed = [f"[^1]: {notes}".strip().splitlines()][0]
    sources = [re.match(r"\[\^(\d+)\]: `(?:results/)?([a-z_]+)(?:/(?:sinky|plain))?\.csv`: .", one) for one in listed]
    assert [int(source[1]) for source in sources] == list(range(1, len(listed) + 1))
    tables = {*study().tables, "scores"}
    assert {source[2] for source in sources} <= tables
    assert len(set(listed)) == len(listed)


def test_controls_are_marked_and_nothing_is_said_of_their_speed(text):
    assert "### plain (control)" in text
    for line in text.split("\n\n[^1]: ")[0].splitlines():
        if "plain" in line:
            assert not re.search("SDPA|speed|skipped|replac", line), line
    assert "SDPA" not in section(text, "Verdicts").split("### plain")[1]


def test_the_findings_open_with_the_first_model_that_is_no_control():
    tables = study(names=("zeta", "alpha"))
    first = tables["heads"]["model"] == "zeta"
    text = markdown(with_tables(tables, heads=pd.concat([tables["heads"][~first], tables["heads"][first]])))
    assert "**zeta.**\nIt has attention sinks." in text.split("\n## ")[0]
    only = {name: tables[name].query("model == 'alpha'") for name in ("heads", "verification", "curves")}
    text = markdown(
        with_tables(tables, **only, benchmark=pd.DataFrame(), quality=pd.DataFrame(), answers=pd.DataFrame())
    )
    assert "**alpha (control).**\nIt has no attention sinks." in text.split("\n## ")[0]
    assert "Replacing heads" not in text.split("\n## ")[0]
    assert values(text, "Beside the", 1)[-2:] == ["none in it", "12.50%"]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([("a", "short", 3), ("b", "short", 2), ("c", "long", 64), ("d", "long", 24)], []),
        (
            [("a", "short", 2), ("b", "code", 25), ("c", "long", 60), ("d", "long", 20)],
            ["24 to 30 tokens in the set long", "d with 20"],
        ),
        ([("a", "short", 3), ("c", "long", 30)], ["has 2 tokens; shown is the nearest, a with 3 tokens"]),
        ([("a", "short", 2), ("c", "code", 25)], ["24 to 30 tokens in the set long; shown is the nearest, c with 25"]),
    ],
    ids=["exact", "length", "short", "set"],
)
def test_prompts_in_the_place_of_the_originals_are_the_nearest_and_called_so(prompts, said):
    opening = section(markdown(study(prompts=tuple(prompts))), "Beside the")
    assert [one for one in said if one not in opening] == []
    assert opening.count("No prompt has") == bool(said)
    if not said:
        assert ": b" in opening
        assert ": d" in opening


@pytest.mark.parametrize(
    ("changes", "what_to_do"),
    [
        ({"correlation": {"p_value": 0.5}}, "Use `results/plans/sinky/consistent.json`"),
        ({"benchmark": {"speedup_low": 0.5}}, "no harmless way to replace heads is surely faster"),
        ({"benchmark": {"heads_replaced": 0}}, "no harmless way to replace heads is surely faster"),
        ({"benchmark": {"model": "another"}}, "what replacing heads would gain was not timed"),
        ({"benchmark": {"speedup_low": 0.5}, "long_prompts": {"sink_share": 0.0}}, "there are no sinks to use"),
    ],
)
def test_what_to_do_follows_from_the_verdicts(changes, what_to_do):
    tables = study()
    tables = with_tables(tables, **{name: tables[name].assign(**to) for name, to in changes.items()})
    assert what_to_do in section(markdown(tables), "# Attention sinks")


def test_a_plan_at_a_price_is_offered_where_no_harmless_way_is_surely_faster():
    made = study()
    rows = made["benchmark"]["strategy"] == "first_value"
    windows = {"strategy": "sink_window", "policy": "budget", "top1_agreement": 0.9375}
    priced = made["benchmark"].assign(**{name: made["benchmark"][name].mask(rows, to) for name, to in windows.items()})
    opening = section(markdown(with_tables(made, benchmark=priced)), "# Attention sinks")
    assert "Replacing heads pays at a price alone." in opening
    assert "no way that keeps KL at most 0.01 and top-1 agreement at least 0.98 is surely faster" in opening
    assert "At a price, use `results/plans/sinky/budget.json` (sink_window) for prefill from 24 tokens on" in opening
    assert "a top-1 agreement of 93.75% and a perplexity" in opening
    other = priced.assign(policy=priced["policy"].replace("budget", "consistent"))
    unasked = section(markdown(with_tables(made, benchmark=other)), "# Attention sinks")
    assert "Replacing heads does not pay." in unasked
    assert "At a price" not in unasked


def empty(*names: str) -> dict[str, pd.DataFrame]:
    return {name: study()[name].iloc[:0] for name in names}


@pytest.mark.parametrize(
    ("changes", "heading", "said"),
    [
        ({"benchmark": study()["benchmark"].query("heads_replaced == 0")}, "Replacing", "No policy found a head"),
        (
            dict.fromkeys(("benchmark", "quality", "skipping", "answers"), pd.DataFrame()),
            "Replacing",
            "Nothing was timed.",
        ),
        ({"benchmark": pd.DataFrame({"model": []})}, "Replacing", "**sinky** was not timed: of a model whose layers"),
        ({"simulation": pd.DataFrame()}, "Simulated", "names no simulation"),
        (
            {"beside_simulated": pd.DataFrame()},
            "Simulated",
            "No measured model has the 2 layers of 4 heads of simulated toy. To set one beside it, add it to `models`",
        ),
        ({}, "Simulated", "No measured model has the 32 layers of 32 heads of simulated big."),
        (
            {"beside_simulated": study()["beside_simulated"].assign(ci_low=0.0, ci_high=1.0)},
            "Simulated",
            "Does simulated toy describe sinky? **It is not rejected**",
        ),
        (
            {"beside_simulated": study()["beside_simulated"].assign(ci_low=float("nan"))},
            "Simulated",
            "Does simulated toy describe sinky? **It cannot be said**",
        ),
        (
            {"simulation": study()["simulation"].assign(fitted_to="sinky")},
            "Simulated",
            "fitted to the captures of sinky",
        ),
        (empty("heldout_errors"), "Which sim", "too few or too short"),
        (empty("set_dependence"), "Consistent", "No prompt is long enough"),
        (empty("control"), "Against", "has no control"),
        ({"published": pd.DataFrame()}, "Published", "No published figures"),
        (empty("long_prompts", "sink_positions", "benchmark"), "# Attention sinks", "Measure on longer prompts first"),
        ({"lengths": study()["lengths"].query("n_tokens <= 2")}, "Impact", "only 2 tokens"),
    ],
)
def test_a_study_that_lacks_something_says_so(changes, heading, said):
    prompts = {"correlation": study()["correlation"].query("prompt != 'fox'")} if "lengths" in changes else {}
    text = markdown(with_tables(study(), **changes, **prompts))
    assert said in section(text, heading)
    assert_no_nan(text)


def test_a_model_that_is_probably_misloaded_is_named_on_the_first_screen_and_a_control_never():
    tables = study()
    wrong = tables["quality"].assign(perplexity=2e5)
    text = markdown(with_tables(tables, quality=pd.concat([wrong, wrong.assign(model="plain")])))
    first = text.split("\n## ")[0]
    assert "**sinky is probably misloaded:** perplexity on the held-out text is 2e+05 per token." in first
    assert "plain is probably" not in text
    assert "misloaded:**" not in markdown(tables)


def test_provenance_tells_of_quantization_first_token_and_prompts_that_were_cut():
    about = PROVENANCE | {"quantization": "Q4_1 x 210, F32 x 61; dequantized to float32"}
    about |= {"first_token_id": "1", "first_token": "<`|im_start|`>", "keep": "lengths"}
    other = PROVENANCE | {"quantization": "none", "first_token_id": "-1"}
    tables = replace(study(), provenance={"sinky": about, "plain": other})
    text = markdown(with_tables(tables, cut_prompts=frame(CUT, ("sinky", "novel", 9000, 8192))))
    sinky, plain = section(text, "Results: sinky"), section(text, "Results: plain")
    assert "tensor types Q4_1 x 210, F32 x 61; dequantized to float32." in sinky
    assert "not of a\nquantized one" in sinky
    assert "scores of single heads at some prefix lengths" in sinky
    assert "Every prompt starts with token 1 (`` <`|im_start|`> ``)." in sinky
    assert "Prompt novel has 9000 tokens and was cut to the model's context of 8192." in sinky
    assert "Prompts start with different tokens." in plain
    assert not re.search("quantized|starts with|was cut|prefix lengths", plain)
    compared = section(text, "Exactness of the captures")
    assert re.search(r"sinky.*eager attention \S+ of a score", compared)
    assert not re.search(r"plain.*of a score", compared)


# Text that others wrote.


def seen(text: str, of: str = "td") -> tuple[str, int]:
    """What a reader of Markdown sees in the first such element, and how many elements are within."""
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    inside = re.search(f"<{of}>(.*?)</{of}>", page, re.S)[1]
    plain = re.sub(r"</?[a-z][^>]*>", "", inside)
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        plain = plain.replace(entity, sign)
    return " ".join(plain.split()), len(re.findall("<[a-z]", inside))


HOSTILE = st.text(alphabet=st.sampled_from("`*_[]()!<>|\\&#~$^: ab1\n\u202e\ue000"), max_size=20) | st.text(max_size=20)


@given(HOSTILE)
def test_text_from_outside_stays_text_in_cells_and_in_prose(value):
    wanted = " ".join(visible(value).split())
    assert seen(f"| a | b |\n| --- | --- |\n| x {finalize(value)} | y |") == (f"x {wanted}".strip(), 0)
    assert seen(f"- **x {finalize(value)} y**: y", "strong") == (" ".join(f"x {wanted} y".split()), 0)


@given(HOSTILE)
def test_text_from_outside_does_not_leave_its_code_span(value):
    if visible(value):
        assert seen(f"a {code(value)} b", "p") == (" ".join(f"a {visible(value)} b".split()), 1)


def test_characters_that_are_not_seen_or_turn_lines_are_shown_as_their_code_points():
    assert visible("a\u2029b\u202ec\td\r\ne\ue000\0") == "aU+2029bU+202Ec d eU+E000U+0000"


def test_only_web_addresses_become_links():
    assert link("a [b]", "https://x.org/a b)") == "[a \\[b\\]](<https://x.org/a%20b)>)"
    for address in ("javascript:alert(1)", None, NAN, "file:///etc"):
        assert link("a [b]", address) == "a \\[b\\]"


PIECES = "`a` ![pic](x.png) <img src=x onerror=alert(1)> | [^1] **bold** </td> \u202e"


@pytest.fixture
def page(tmp_path) -> Callable[[str], str]:
    """The HTML page of some Markdown, beside the figures of the made-up study."""
    (tmp_path / "figures").mkdir()
    for name in study().figures | {"dot"}:
        Image.new("RGB", (1360, 540)).save(tmp_path / f"figures/{name}.png")
    return lambda text: html(text, tmp_path)


def test_a_study_in_which_every_name_is_hostile_is_the_same_page_with_other_words(page):
    tables = study(prompts=((f"p {PIECES}", f"s {PIECES}", 2), (f"q {PIECES}", "long", 30)))
    about = PROVENANCE | {"source": PIECES, "device": PIECES, "quantization": PIECES, "first_token_id": 1}
    tables = with_tables(
        replace(tables, provenance=dict.fromkeys(tables.models, about)),
        cut_prompts=frame(CUT, ("sinky", PIECES, 3, 2)),
        published=tables["published"].assign(conditions=PIECES, checked=PIECES, link="javascript:alert(1)"),
        answers=tables["answers"].assign(strategy=PIECES),
        verification=tables["verification"].assign(prompt=PIECES),
        costs=tables["costs"].assign(stage=PIECES, longest=PIECES),
    )
    hostile, tame = page(markdown(tables)), page(markdown(study()))
    for tag in ("table", "tr", "td", "img", "section", "script"):
        assert hostile.count(f"<{tag}") - tame.count(f"<{tag}") == {"tr": -1, "td": -7}.get(tag, 0), tag
    assert not re.search(r"<[^>]* on\w+=[^\"]|javascript:", re.sub(r'"[^"]*"', '""', hostile))
    shown = PIECES.replace("\u202e", "U+202E").replace("<", "&lt;").replace(">", "&gt;")
    assert hostile.count(shown) > 20


# The page.


def test_the_page_has_every_section_figure_and_note_of_the_markdown_and_needs_no_network(page):
    source = note("results/heads/m.csv", "set=long_")
    rows = f"| set | n |\n| --- | --- |\n| long{source} | 3 |"
    made = page(number_footnotes(f"# Title\n\n![A dot](figures/dot.png)\n\n## First *part*\n\n{rows}\n\n- 3.{source}"))
    assert re.findall(r'<section id="(.*?)">', made) == ["summary", "1-first-part", "evidence"]
    assert '<a href="#1-first-part">First part</a>' in made
    assert '<img src="data:image/png;base64,' in made
    assert "<figcaption>A dot</figcaption>" in made
    assert "<p><figure>" not in made
    shown = "results/heads/m.csv: set=long_"
    assert re.findall(r"<td([^>]*)>", made) == [f' title="{shown}"'] * 2
    assert made.count(f'<a href="#note-1" title="{shown}">[1]</a>') == 2
    assert '<li id="note-1">' in made
    assert not re.search(r"""(src|href)=["'](?!#|data:|explorer.html)""", made)
    assert "@import" not in made


def test_figures_that_the_study_does_not_draw_are_left_out_and_those_that_are_gone_are_named(page, refuses):
    drawn = study().figures
    text = markdown(study())
    assert set(re.findall(r"\(figures/(.+?)\.png\)", text)) == drawn
    assert len(drawn) == 2 * len(FIGURES) + 5
    assert "![" not in markdown(replace(study(), figures=frozenset()))
    with refuses("figures/none.png"):
        page("![Nothing](figures/none.png)")


def test_footnotes_are_numbered_in_order_and_the_same_one_is_listed_once():
    first, second = note("a.csv", "set=x"), note("b.csv", "group=5 tokens")
    assert number_footnotes(f"One{first}, two{second}, three{first}, both{first}{second}.").splitlines() == [
        "One[^1], two[^2], three[^1], both[^3].",
        "",
        "[^1]: `a.csv`: set=x",
        "[^2]: `b.csv`: group=5 tokens",
        "[^3]: `a.csv`: set=x; `b.csv`: group=5 tokens",
    ]
    assert number_footnotes("No number.") == "No number."


@pytest.mark.parametrize("width", [390, 1200, 1280])
def test_the_summary_fits_a_screen_and_wide_tables_scroll_inside_themselves(page, tmp_path, width):
    path = tmp_path / "findings.html"
    wide = study()["published"].assign(conditions="conditions that take a whole line and more, " * 5)
    path.write_text(page(markdown(with_tables(study(), published=wide))), encoding="utf-8")
    with opened(path, width=width, height=900) as browser:
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        bottom = browser.evaluate("document.getElementById('summary').getBoundingClientRect().bottom")
        assert bottom <= 900 or width == 390
        boxes = "[...document.querySelectorAll('.table')].map(box => [box.clientWidth, box.scrollWidth, "
        boxes += "getComputedStyle(box).overflowX, box.querySelector('table').offsetWidth])"
        found = browser.evaluate(boxes)
        assert any(whole > shown for shown, whole, _, _ in found)
        assert all(whole >= table and how == "auto" for _, whole, how, table in found)
        titles = browser.evaluate("[...document.querySelectorAll('td')].map(cell => cell.title)")
        assert len(titles) > 100
        assert all(title.startswith(("results/", "published.csv")) for title in titles)


def test_the_contents_follow_the_reader_and_a_figure_enlarges_and_closes(page, tmp_path):
    path = tmp_path / "findings.html"
    path.write_text(page(markdown(study())), encoding="utf-8")
    with opened(path) as browser:
        assert browser.locator("nav [aria-current]").all_text_contents() == ["Summary"]
        browser.evaluate("document.getElementById('evidence').scrollIntoView({behavior: 'instant'})")
        browser.wait_for_function("document.querySelector('nav [aria-current]').textContent == 'Evidence'")
        assert browser.locator("nav [aria-current]").count() == 1
        small = browser.locator("main figure").first
        small.locator("button").click()
        large = browser.locator("dialog[open]")
        assert large.locator("img").bounding_box()["width"] > 1.2 * small.locator("img").bounding_box()["width"]
        assert large.locator("figcaption").text_content() == small.locator("figcaption").text_content()
        browser.keyboard.press("Escape")
        assert browser.locator("dialog[open]").count() == 0
        levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize(("width", "is_open"), [(390, False), (1280, True)])
def test_on_a_phone_the_contents_are_closed_until_asked_for(page, tmp_path, width, is_open):
    path = tmp_path / "findings.html"
    path.write_text(page(markdown(study())), encoding="utf-8")
    with opened(path, width=width) as browser:
        assert browser.locator("nav li").first.is_visible() is is_open
        if not is_open:
            browser.locator("nav summary").click()
            assert browser.locator("nav li").first.is_visible()


def test_the_title_of_a_figure_is_its_text_for_those_who_do_not_see_it(page, tmp_path):
    title = PngInfo()
    title.add_text("Title", 'Sinks ≥ 0.9 "vanish"')
    (tmp_path / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "figures/dot.png", pnginfo=title)
    shown = html("![A dot](figures/dot.png)", tmp_path)
    assert 'alt="Sinks ≥ 0.9 &#34;vanish&#34;" width="130" height="65"' in shown
    assert "<figcaption>A dot</figcaption>" in shown


@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_fault_of_accessibility(page, tmp_path, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install -e '.[test]'")
    path = tmp_path / "findings.html"
    path.write_text(page(markdown(study())), encoding="utf-8")
    with opened(path, width=width) as browser:
        faults = axe.Axe().run(browser).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []


def test_a_printed_page_has_at_most_12_sheets(page, tmp_path):
    path = tmp_path / "findings.html"
    path.write_text(page(markdown(study())), encoding="utf-8")
    with opened(path) as browser:
        assert len(re.findall(rb"/Type\s*/Page\b(?!s)", browser.pdf())) <= 12


@pytest.mark.parametrize(
    ("question", "address"),
    [
        ("has_sinks", "model=sinky&prompt=all&colour=excess"),
        ("first_layer", "model=sinky&prompt=all&colour=score&length=24"),
        ("length", "model=sinky&prompt=all&colour=score&length=8"),
        ("mechanism", "model=sinky&prompt=all&colour=drain"),
        ("skippable", "model=sinky&prompt=all&colour=plan%3Aconsistent"),
        ("worth_replacing", "model=sinky&prompt=all&colour=plan%3Aconsistent"),
        ("simulator", None),
    ],
)
def test_a_verdict_leads_to_the_heads_it_is_about(question, address):
    tables = study()
    link = f" [See the heads](<explorer.html#{address}>)" if address else ""
    assert view("sinky", question, judge(tables, "sinky")[question]) == link


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(366, 512, "71.48%"), (0, 512, "0.00%"), (77 / 104, 1, "74.04%"), (NAN, 1, "undefined"), (None, 1, "undefined")],
)
def test_percent_prints_two_decimals_as_the_original_study_does(part, whole, shown):
    assert percent(part, whole) == shown


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [(-1e-9, ".3f", "0.000"), (-0.25, ".3f", "-0.250"), (1.5e-8, ".1e", "1.5e-08"), (NAN, ".3f", "undefined")],
)
def test_numbers_are_never_minus_zero_or_nan(value, form, shown):
    assert show(value, form) == shown
