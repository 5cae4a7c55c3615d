"""Simulate the sink matrices of one preset at every prompt length: by the formula, or fitted to a captured model."""

from pathlib import Path

from sinkstudy.simulation.calibration import calibrate, simulate_calibrated
from sinkstudy.simulation.formula import simulate, summary_table, write_simulation
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store import read_captures
from sinkstudy.store.tables import write_table
from sinkstudy.workflow.expected import Expected
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    params, preset = snakemake.params, snakemake.wildcards.preset
    shape = params.preset | {"threshold": params.threshold}
    fitted_to = shape.pop("fitted_to", None)
    if fitted_to:
        calibration = calibrate(read_captures(Expected(**params.expected).checked(snakemake.input)))
        simulated = simulate_calibrated(calibration, **shape)
    else:
        simulated = simulate(**shape)
    summary = summary_table(preset, simulated, params.threshold, Resampling(**params.resampling), fitted_to)
    write_simulation(Path(snakemake.output.h5), preset, simulated, params.threshold)
    write_table(summary, snakemake.output.csv)
