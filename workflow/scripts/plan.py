"""Write the plan of one policy for one model."""

from dataclasses import replace

from sinkstudy.evaluation.policies import consistent, first_layer
from sinkstudy.store import atomic_write
from sinkstudy.store.tables import LongTable
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    if snakemake.wildcards.policy == "first_layer":
        plan = first_layer(params.threshold, params.max_tokens)
    else:
        plan = consistent(LongTable(snakemake.input), params.share, params.min_tokens, params.max_tokens)
    with atomic_write(snakemake.output[0]) as path:
        replace(plan, **params.sink_window).save(path)
