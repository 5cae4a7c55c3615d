"""First-token activation, value drain and the positions that draw attention, of one model."""

from sinkstudy.stats.mechanism import activation_tables, mechanism_table
from sinkstudy.stats.positions import position_tables, sink_position_tables
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.reduced import Reduced
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    model, reduced, output = snakemake.wildcards.model, Reduced(snakemake.input), snakemake.output
    write_table(activation_tables(reduced, model), output.activations)
    write_table(mechanism_table(reduced, model, Resampling(**snakemake.params.resampling)), output.mechanism)
    write_table(position_tables(reduced, model), output.positions)
    write_table(sink_position_tables(reduced, model), output.sink_positions)
