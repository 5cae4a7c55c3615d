"""Average every head of one model over the prompts of each set and over all, and every layer over its heads."""

from sinkstudy.joblog import job_log
from sinkstudy.scores import head_table
from sinkstudy.stats.profile import layer_table
from sinkstudy.stats.resampling import Resampling
from sinkstudy.tables import LongTable, write_table

with job_log(snakemake.log[0]):
    scores = LongTable(snakemake.input)
    write_table(head_table(scores), snakemake.output.heads)
    write_table(layer_table(scores, Resampling(**snakemake.params.resampling)), snakemake.output.profile)
