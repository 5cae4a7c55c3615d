"""Average every head of one model over the prompts of each set and over all, and every layer over its heads."""

from sinkstudy.stats.profile import layer_table
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import head_table
from sinkstudy.store.tables import LongTable, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    scores = LongTable(snakemake.input)
    write_table(head_table(scores), snakemake.output.heads)
    write_table(layer_table(scores, Resampling(**snakemake.params.resampling)), snakemake.output.profile)
