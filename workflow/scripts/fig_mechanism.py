"""Activations by layer and the positions that draw attention, of one model."""

from sinkstudy.figures.mechanism import activation_figure, position_figure
from sinkstudy.figures.style import save
from sinkstudy.stats.positions import sink_shares, strongest_receivers
from sinkstudy.stats.profile import MIN_TOKENS
from sinkstudy.store.tables import LongTable, read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    paths, output = snakemake.input, snakemake.output
    save(activation_figure(read_tables([paths.mechanism])), output.activation[0])
    receivers = strongest_receivers(LongTable([paths.positions]), MIN_TOKENS, count=8)
    shares = sink_shares(LongTable([paths.sink_positions]), MIN_TOKENS)
    save(position_figure(receivers, shares, snakemake.wildcards.model), output.positions[0])
