"""First-token activation, value drain and the positions that draw attention, of one model."""

from sinkstudy.stats.mechanism import Mechanism
from sinkstudy.stats.positions import position_tables, sink_position_tables
from sinkstudy.stats.resampling import Resampling
from sinkstudy.stats.scores import add_all
from sinkstudy.store import Expected, read_captures
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    model, expected = snakemake.wildcards.model, Expected(**snakemake.params.expected)
    mechanism = Mechanism()
    add_all(read_captures(snakemake.input, expected), mechanism)
    write_table(mechanism.activation_tables(model), snakemake.output.activations)
    write_table(mechanism.table(model, Resampling(**snakemake.params.resampling)), snakemake.output.mechanism)
    for name, tables in {"positions": position_tables, "sink_positions": sink_position_tables}.items():
        captures = read_captures(snakemake.input, expected)
        write_table(tables(captures, model), snakemake.output[name])
