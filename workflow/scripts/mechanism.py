"""First-token activation, value drain and the positions that draw attention, of one model."""

from sinkstudy.stats.mechanism import activation_tables, mechanism_table
from sinkstudy.stats.positions import position_tables, sink_position_tables
from sinkstudy.stats.reduced import Reduced
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.tables import write_long_table, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    model, reduced, output = snakemake.wildcards.model, Reduced(snakemake.input), snakemake.output
    write_table(mechanism_table(reduced, model, Resampling(**snakemake.params.resampling)), output.mechanism)
    tables = {"activations": activation_tables, "positions": position_tables, "sink_positions": sink_position_tables}
    for name, parts in tables.items():
        write_long_table(parts(reduced, model), output[f"{name}_parquet"], output.get(name))
