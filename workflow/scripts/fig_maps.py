"""Example attention maps of one model: its strongest sink head, its weakest head, and the one nearest the middle."""

from sinkstudy.figures.examples import example_maps
from sinkstudy.figures.maps import maps_figure
from sinkstudy.figures.style import save
from sinkstudy.store import Expected
from sinkstudy.store.tables import LongTable
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    scores = LongTable([snakemake.input.scores])
    expected = Expected(**snakemake.params.expected)
    prompt, tokens, examples = example_maps(snakemake.input.captures, scores, expected)
    save(maps_figure(snakemake.wildcards.model, prompt, tokens, examples), *snakemake.output)
