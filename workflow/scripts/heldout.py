"""Predict every half of one model's prompts by the formula and by a simulator fitted to the other half."""

from sinkstudy.simulation.heldout import heldout_tables
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store import read_captures
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    captures = read_captures(Expected(**params.expected).checked(snakemake.input))
    predictions, errors = heldout_tables(
        captures, snakemake.wildcards.model, params.thresholds, params.lengths, Resampling(**params.resampling)
    )
    write_table(predictions, snakemake.output.predictions)
    write_table(errors, snakemake.output.errors)
