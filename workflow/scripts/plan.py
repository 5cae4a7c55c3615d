"""Write the plan of one policy for one model."""

from dataclasses import replace

from sinkstudy.attention.plan import Plan
from sinkstudy.evaluation.policies import consistent
from sinkstudy.store import atomic_write
from sinkstudy.store.tables import LongTable
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params = snakemake.params
    if snakemake.wildcards.policy == "first_layer":
        # The original study's policy leaves it to the first layer's attention to the very input.
        plan = Plan(first_layer_threshold=params.threshold, max_tokens=params.max_tokens, policy="first_layer")
    else:
        plan = consistent(LongTable(snakemake.input), params.share, params.min_tokens, params.max_tokens)
    with atomic_write(snakemake.output[0]) as path:
        replace(plan, **params.sink_window).save(path)
