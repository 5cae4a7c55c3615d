"""Sinks and scores of one model against prompt length: over all heads, and head by head."""

from sinkstudy.figures.lengths import head_curves_figure, length_figure
from sinkstudy.figures.style import save
from sinkstudy.stats.profile import head_curves
from sinkstudy.stats.scores import null_score
from sinkstudy.store import read_captures
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    curves, threshold = read_tables([snakemake.input.curves]), snakemake.params.threshold
    save(length_figure(curves[curves["set"] == "all"], threshold), snakemake.output.lengths[0])
    captures = Expected(**snakemake.params.expected).checked(snakemake.input.captures)
    lengths, scores, prompts = head_curves(read_captures(captures))
    figure = head_curves_figure(snakemake.wildcards.model, lengths, scores, prompts, null_score(lengths), threshold)
    save(figure, snakemake.output.heads[0])
