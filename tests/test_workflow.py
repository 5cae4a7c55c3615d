"""The workflow from outside: what a user types, and what they find."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from arithmetic import assert_within, truth_of
from browser import opened, showing
from study import CLONE, PROMPTS, ROOT, planned, snakemake
from tiny import eager_maps

from sinkstudy.attention import Plan
from sinkstudy.evaluation.budget import halves_work
from sinkstudy.evaluation.onset import from_where_it_pays
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec

TABLES = {
    "scores": "model set prompt n_tokens layer head sink_score null_score excess_score tail_score is_sink",
    "lengths": "model set prompt n_tokens threshold sink_fraction mean_score null_score mean_excess",
    "correlation": "model set prompt n_tokens threshold first_layer_sinks p_later_given_first p_later lift phi ci_low "
    "ci_high p_value",
    "predictors": "model measure threshold n_tokens predictor auc auc_low auc_high log_loss brier precision recall",
    "benchmark": "model phase n_tokens batch strategy policy heads_replaced head_fraction median_s iqr_s "
    "speedup_vs_sdpa speedup_low speedup_high speedup_vs_eager ceiling peak_mb kv_cache_mb kl top1_agreement "
    "perplexity_ratio device kernel",
}
pytestmark = pytest.mark.slow
DIGITS = 1e-9  # tables keep nine, and their numbers here are at most 1


@pytest.mark.parametrize("model", ["reference", "untrained", "foreign"])
def test_every_contract_table_appears_with_its_columns(finished, model):
    control = model == "untrained"  # which is not timed
    for table, columns in TABLES.items():
        path = finished / f"results/{table}/{model}.csv"
        assert path.is_file() != (control and table == "benchmark")
        if path.is_file():
            found = pd.read_csv(path)
            assert [column for column in found.columns if column in columns.split()] == columns.split(), table
            assert len(found)
    for policy in ("first_layer", "consistent"):
        assert (finished / f"results/plans/{model}/{policy}.json").is_file() != control
    text = (finished / "results/findings.md").read_text()
    assert f"## Results: {model}" in text
    assert "nan" not in text
    verdicts = json.loads((finished / "results/verdicts.json").read_text())
    answered = {one["question"] for one in verdicts if one["model"] == model}
    assert answered >= {"first_layer"} | (set() if control else {"worth_replacing"})


def test_figures_come_in_every_format_and_open(finished):
    names = {path.stem for path in (finished / "results/figures").iterdir()}
    assert {"heatmap_reference_short", "lengths_foreign", "timing_foreign", "comparison_short_vs_long"} <= names
    assert "timing_untrained" not in names  # a control
    for name in names:
        ElementTree.parse(finished / f"results/figures/{name}.svg")
        assert (finished / f"results/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (finished / f"results/figures/{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("model", ["reference", "untrained", "foreign"])
def test_captures_equal_eager_attention_and_tables_recompute_from_them(finished, model):
    settings = CLONE["models"][model]
    loaded = load_model(ModelSpec(**settings | {"source": str(finished / settings["source"])}))
    scores = pd.read_csv(finished / f"results/scores/{model}.csv")
    lengths = pd.read_csv(finished / f"results/lengths/{model}.csv")
    seen = []
    for path in sorted((finished / f"results/captures/{model}").glob("*.h5")):
        with h5py.File(path) as file:
            assert file.attrs["complete"]
            assert file.attrs["source"].decode() == settings["source"]
            for name in [n for n, item in file.items() if isinstance(item, h5py.Group)]:
                ids = torch.tensor(file[name]["token_ids"][()], dtype=torch.long)[None]
                maps = truth_of(eager_maps, loaded.model, ids)[:, 0]  # (layer, head, query, key)
                mass, attention = file[name]["sink_mass"][()], file[name]["attention"][()]
                assert_within(torch.tensor(mass), maps[..., 0])
                stored = maps.allowed + 2**-15 + 2**-12  # half the steps in which recording and float16 round
                assert_within(torch.tensor(attention), replace(maps, allowed=stored))
                n = ids.shape[1]
                mine = scores[scores["prompt"] == name].sort_values(["layer", "head"])
                np.testing.assert_allclose(mine["sink_score"], mass.astype(float).mean(-1).ravel(), atol=DIGITS)
                for k in (1, 2, n):
                    row = lengths.query("prompt == @name and n_tokens == @k and threshold == 0.8").iloc[0]
                    at_k = mass[..., :k].astype(float).mean(-1)
                    assert row["mean_score"] == pytest.approx(at_k.mean(), abs=DIGITS)
                    assert row["sink_fraction"] == pytest.approx((at_k >= 0.8).mean(), abs=DIGITS)
                seen.append(name)
    assert sorted(seen) == sorted(row[0] for row in PROMPTS)


def test_the_explorer_shows_the_percentages_of_the_length_tables(finished):
    with opened(finished / "results/explorer.html") as page:
        for model in ("reference", "untrained", "foreign"):
            lengths = pd.read_csv(finished / f"results/lengths/{model}.csv", dtype={"sink_fraction": str})
            for prompt, rows in lengths[lengths["threshold"] == 0.9].groupby("prompt"):
                n = min(24, rows["n_tokens"].max())
                showing(page, model, prompt, n, 0.9)
                (printed,) = rows.loc[rows["n_tokens"] == n, "sink_fraction"]
                assert page.locator("#sink-percent").get_attribute("data-fraction") == printed
                assert page.locator("#sink-percent").inner_text() == f"{100 * float(printed):.2f}%"


def test_a_second_run_does_nothing(finished):
    assert planned(finished) == {}


def test_a_plan_comes_out_again_byte_for_byte(copied):
    """From the same configuration, in processes of their own, where the toy's budget buys some heads and not others."""
    budget = {"budget_kl": 1e-5, "budget_window": [2, 4], "sink_tokens": 2}
    (copied / "config.yaml").write_text(yaml.safe_dump(CLONE | {"benchmark": CLONE["benchmark"] | budget}))
    files = [copied / f"results/{name}" for name in ("plans/reference/budget.json", "head_costs/reference.csv")]
    made = []
    for _ in range(2):
        for file in files:
            file.unlink()
        done = snakemake(copied, str(files[0].relative_to(copied)), snakefile=copied / "Snakefile")
        assert done.returncode == 0, done.stderr[-3000:]
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]
    heads, plan = pd.read_csv(files[1])[["layer", "head"]].drop_duplicates(), Plan.load(files[0])
    assert 0 < plan.replaced < len(heads)
    # This plan begins where decoding gains, which takes longer prompts than a prefill does.
    widths = [plan.window_of(layer, head) for layer, some in plan.heads.items() for head in some]
    of_prefill = replace(plan, min_tokens=halves_work(plan.sink_tokens, widths))
    assert from_where_it_pays(load_model(ModelSpec(str(ROOT / "models/reference"))).model, of_prefill) == plan
    assert plan.min_tokens > of_prefill.min_tokens


def test_the_report_builds(copied):
    result = snakemake(copied, "--report", "report.html")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "lengths_reference" in (copied / "report.html").read_text()


def test_the_cost_table_covers_every_job_but_the_two_that_show_it(finished):
    logs = {path.relative_to(finished / "logs").with_suffix("") for path in (finished / "logs").rglob("*.log")}
    costs = finished / "results/costs"
    measured = {path.relative_to(costs).with_suffix("") for path in costs.rglob("*.tsv")}
    assert logs - measured == {Path("costs"), Path("findings")}
    table = pd.read_csv(finished / "results/costs.csv")
    assert table["jobs"].sum() == len(measured)
    assert (table["total_s"] > 0).all()
    assert (table["longest_s"] <= table["total_s"] + 1e-6).all()
    # Python with PyTorch in it.
    assert 150 < table.set_index("stage")["peak_rss_mib"]["capture"] < 4000
