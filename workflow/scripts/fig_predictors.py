"""How well each candidate tells the later sinks of one model."""

from sinkstudy.figures.predictors import predictors_figure
from sinkstudy.figures.style import save
from sinkstudy.store.tables import read_tables
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    tables = [read_tables([snakemake.input[name]]) for name in ("predictors", "learning")]
    at = [table[(table["measure"] == "score") & (table["threshold"] == snakemake.params.threshold)] for table in tables]
    save(predictors_figure(*at), snakemake.output[0])
