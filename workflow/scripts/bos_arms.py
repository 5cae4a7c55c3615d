"""The same prompts of one model without a beginning-of-sequence token, with it, and with two."""

from pathlib import Path

import torch

from sinkstudy.capture.recording import record
from sinkstudy.models.loading import bos_arms, load_model
from sinkstudy.models.spec import pinned
from sinkstudy.prompts import read_prompts
from sinkstudy.stats.bos_arms import arm_rows, bos_arm_table
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store import read_captures
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    torch.set_num_threads(min(snakemake.threads, torch.get_num_threads()))
    params, model = snakemake.params, snakemake.wildcards.model
    spec = pinned(params.model, snakemake.input.model, Path.cwd())
    loaded = load_model(spec, params.offload, snakemake.resources.mem_mb * 10**6)
    prompts = read_prompts(Path(snakemake.input.prompts))
    rows = []
    for arm, under_arm in bos_arms(loaded, params.arms).items():
        path = Path(snakemake.output.captures) / f"{arm}.h5"
        longest = max(params.lengths)
        record(path, model, under_arm, prompts, 0, longest, max_tokens=longest)
        rows += arm_rows(read_captures([path]), arm, params.threshold, params.lengths)
    write_table(bos_arm_table(rows, model, Resampling(**params.resampling)), snakemake.output.table)
