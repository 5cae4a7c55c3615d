"""The workflow from outside: what a user types, and what they find."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from arithmetic import assert_within, truth_of
from browser import opened, showing
from foreign import save_foreign_model
from study import PROMPTS, SMALL, copy_code, planned, snakemake, write_prompts, write_study
from tiny import eager_maps

from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec

TABLES = {
    "scores": "model set prompt n_tokens layer head sink_score null_score excess_score tail_score is_sink",
    "lengths": "model set prompt n_tokens threshold sink_fraction mean_score null_score mean_excess",
    "correlation": "model set prompt n_tokens threshold first_layer_sinks p_later_given_first p_later lift phi ci_low "
    "ci_high p_value",
    "benchmark": "model phase n_tokens batch strategy policy heads_replaced head_fraction median_s iqr_s "
    "speedup_vs_sdpa speedup_vs_eager ceiling peak_mb kv_cache_mb kl top1_agreement perplexity_ratio device kernel",
}
DIGITS = 1e-9  # tables keep nine, and their numbers here are at most 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study run to the end, with a third model nobody here trained."""
    folder = tmp_path_factory.mktemp("study")
    save_foreign_model(folder / "foreign")
    models = SMALL["models"] | {"foreign": {"source": "foreign"}}
    write_study(folder, SMALL | {"models": models})
    result = snakemake(folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", ["reference", "untrained", "foreign"])
def test_every_contract_table_appears_with_its_columns(finished, model):
    for table, columns in TABLES.items():
        found = pd.read_csv(finished / f"results/{table}/{model}.csv")
        assert list(found.columns)[: len(columns.split())] == columns.split(), table
        assert len(found)
    for policy in ("first_layer", "consistent"):
        assert (finished / f"results/plans/{model}/{policy}.json").is_file()
    text = (finished / "results/findings.md").read_text()
    assert f"## Results: {model}" in text
    assert "nan" not in text
    verdicts = json.loads((finished / "results/verdicts.json").read_text())
    assert {one["question"] for one in verdicts if one["model"] == model} >= {"first_layer", "worth_replacing"}


@pytest.mark.slow
def test_figures_come_in_both_formats_and_open(finished):
    names = {path.stem for path in (finished / "results/figures").iterdir()}
    assert {"heatmap_reference_short", "lengths_foreign", "timing_untrained", "comparison_short_vs_long"} <= names
    for name in names:
        ElementTree.parse(finished / f"results/figures/{name}.svg")
        assert (finished / f"results/figures/{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["reference", "untrained", "foreign"])
def test_captures_equal_eager_attention_and_tables_recompute_from_them(finished, model):
    settings = {"foreign": {"source": str(finished / "foreign")}}.get(model) or SMALL["models"][model]
    loaded = load_model(ModelSpec(**settings))
    scores = pd.read_csv(finished / f"results/scores/{model}.csv")
    lengths = pd.read_csv(finished / f"results/lengths/{model}.csv")
    seen = []
    for path in sorted((finished / f"results/captures/{model}").glob("*.h5")):
        with h5py.File(path) as file:
            assert file.attrs["complete"]
            assert file.attrs["source"] == settings["source"].replace(str(finished) + "/", "")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_second_run_does_nothing_and_the_report_builds(finished):
    assert planned(finished) == {}
    result = snakemake(finished, "--report", "report.html")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "lengths_reference" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_what_must_rerun_does_and_nothing_else(finished):
    config = (finished / "config.yaml").read_text()
    try:
        (finished / "config.yaml").write_text(config + "sinks: {threshold: 0.8}\n")
        jobs = planned(finished)
        assert jobs["scores"] == 3
        assert not jobs.keys() & {"capture", "statistics"}
    finally:
        (finished / "config.yaml").write_text(config)
    edited = [(p, s, t + " Really?" if p == "why" else t) for p, s, t in PROMPTS]
    try:
        write_prompts(finished, edited)
        assert planned(finished, "--until", "capture") == {"capture": 3}  # one shard of three, for three models
        write_prompts(finished, [*PROMPTS, ("more", "short", "One more.")])
        assert planned(finished, "--until", "capture") == {"capture": 3}
    finally:
        write_prompts(finished, PROMPTS)
    assert planned(finished) == {}


@pytest.mark.slow
def test_edited_library_code_reruns_the_stages_that_use_it(tmp_path):
    snakefile = copy_code(tmp_path / "code")
    study = write_study(tmp_path / "study", SMALL | {"models": {"reference": SMALL["models"]["reference"]}})
    assert snakemake(study, snakefile=snakefile).returncode == 0
    library = tmp_path / "code/sinkstudy"

    def edit(name, pattern, replacement):
        path = library / name
        before = path.read_text()
        after, count = re.subn(pattern, replacement, before, count=1)
        assert count, f"{name} no longer holds {pattern}"
        path.write_text(after)
        try:
            return planned(study, snakefile=snakefile)
        finally:
            path.write_text(before)

    assert edit("figures/style.py", r'"savefig.dpi": \d+', '"savefig.dpi": 77').keys() <= {
        "costs",
        "findings",
        "heatmaps",
        "lengths_figures",
        "statistics_figures",
        "maps_figure",
        "timing_figure",
        "simulated_figure",
        "comparison_figures",
    }
    assert "capture" in edit("capture/masses.py", r"_BLOCK = \d+", "_BLOCK = 64")
    assert not edit("stats/resampling.py", r"0\.025", "0.05").keys() & {"capture", "scores", "benchmark"}
    assert edit("capture/masses.py", r'"""Attention mass', '"""The attention mass') == {}
    assert edit("stats/correlation.py", r"\nfrom collections", "\n# a comment\nfrom collections") == {}
