"""Correlation over length, layer pairs, persistence, prompt sets and held-out predictions of one model."""

from pathlib import Path

from sinkstudy.figures.heldout import heldout_figure
from sinkstudy.figures.layer_pairs import layer_pair_figure
from sinkstudy.figures.persistence import persistence_figure, set_dependence_figure
from sinkstudy.figures.style import save
from sinkstudy.figures.weakening import weakening_figure
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    tables = {name: read_tables([path]) for name, path in snakemake.input.items()}
    at = {name: table[table["threshold"] == params.threshold] for name, table in tables.items()}
    curves, persistence, pairs = at["curves"], at["persistence"], at["layer_pairs"]
    figures = {
        "weakening": weakening_figure(curves[curves["set"] == "all"], at["weakening"].iloc[0]),
        "layer_pairs": layer_pair_figure(pairs[pairs["n_tokens"].isna()]),
        "persistence": persistence_figure(persistence[persistence["set"] == "all"]),
        "set_dependence": set_dependence_figure(persistence, curves),
        "heldout": heldout_figure(at["heldout"], params.lengths),
    }
    folder = Path(snakemake.output[0]).parent
    for name, figure in figures.items():
        save(figure, folder / f"{name}_{snakemake.wildcards.model}.png")
