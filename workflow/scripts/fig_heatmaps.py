"""Heatmaps of every prompt set, the threshold contour and the layer bars of one model."""

from pathlib import Path

from sinkstudy.figures.heatmaps import contour_heatmap, layer_bars, score_heatmap
from sinkstudy.figures.style import save
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    heads, layers = read_tables([snakemake.input.heads]), read_tables([snakemake.input.profile])
    model, threshold = snakemake.wildcards.model, snakemake.params.threshold
    every = heads[heads["set"] == "all"]
    figures = {f"heatmap_{model}_{name}": score_heatmap(part) for name, part in heads.groupby("set", sort=False)}
    figures[f"contour_{model}"] = contour_heatmap(every, threshold)
    figures[f"layers_{model}"] = layer_bars(every, layers, threshold)
    folder = Path(snakemake.output[0]).parent
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
