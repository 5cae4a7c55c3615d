"""Comparison bars: short beside long, model beside model, measured beside simulated."""

from pathlib import Path

from sinkstudy.figures.comparison import comparison_figure
from sinkstudy.figures.style import save
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

TITLES = {
    "short_vs_long": "Short and long prompts",
    "model_vs_model": "Models beside each other, by prompt set",
    "measured_vs_simulated": "Measured models beside simulated matrices, by prompt length",
}

with job_log(snakemake.log[0]):
    table = read_tables(snakemake.input)
    folder = Path(snakemake.output[0]).parent
    for name, part in table.groupby("comparison", sort=False):
        figure = comparison_figure(part, TITLES[name])
        save(figure, folder / f"comparison_{name}.png")
