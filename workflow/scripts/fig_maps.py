"""Example attention maps of one model: its strongest sink head, its weakest head, and the one nearest the middle."""

from pathlib import Path

from sinkstudy.figures.examples import example_maps
from sinkstudy.figures.maps import maps_figure
from sinkstudy.figures.style import save
from sinkstudy.store.tables import LongTable
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    scores = LongTable([snakemake.input.scores])
    prompt, tokens, examples = example_maps([Path(p) for p in snakemake.input.captures], scores)
    save(maps_figure(snakemake.wildcards.model, prompt, tokens, examples), *snakemake.output)
