"""Example attention maps of one model: its strongest sink head, its weakest head, and the one nearest the middle."""

from sinkstudy.figures.maps import example_maps, maps_figure, no_maps_figure
from sinkstudy.figures.style import save
from sinkstudy.store.tables import LongTable
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    scores = LongTable([snakemake.input.scores])
    captures = Expected(**snakemake.params.expected).checked(snakemake.input.captures)
    examples, model = example_maps(captures, scores), snakemake.wildcards.model
    figure = maps_figure(model, *examples, snakemake.params.threshold) if examples else no_maps_figure(model)
    save(figure, snakemake.output[0])
