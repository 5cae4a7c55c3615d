"""Correlation of the first layer of one model with later ones, its curves over length, and where it weakens."""

from sinkstudy.stats.analysis import first_layer_statistics
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    model, params = snakemake.wildcards.model, snakemake.params
    reduced, resampling = Reduced(snakemake.input), Resampling(**params.resampling)
    for name, table in first_layer_statistics(reduced, model, params.lengths, resampling).items():
        write_table(table, snakemake.output[name])
