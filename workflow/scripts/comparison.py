"""Set short beside long prompts, model beside model, measured beside simulated, and trained beside untrained."""

from pathlib import Path

from sinkstudy.simulation.formula import read_simulation
from sinkstudy.stats.comparison import beside_simulated_table, comparison_table, control_table
from sinkstudy.stats.resampling import Resampling
from sinkstudy.store.tables import LongTable, read_tables, write_table
from sinkstudy.workflow.joblog import job_log

with job_log(snakemake.log[0]):
    files, params = snakemake.input, snakemake.params
    heads, simulation = read_tables(files.heads), read_tables(files.simulation)
    lengths = LongTable(files.lengths).only(lambda rows: rows["n_tokens"].isin(params.lengths))
    correlation = read_tables(files.correlation).query("prompt == 'all'")
    comparison = comparison_table(heads, lengths, correlation, simulation, threshold=params.threshold)
    control = control_table(lengths, params.controls, params.reported, Resampling(**params.resampling))
    probability = {
        Path(path).stem: {one.n_tokens: one.probability for one in read_simulation(Path(path))}
        for path in files.simulated
    }
    beside = beside_simulated_table(read_tables(files.heldout), heads, probability, params.threshold)
    write_table(beside, snakemake.output.beside_simulated)
    write_table(comparison, snakemake.output.comparison)
    write_table(control, snakemake.output.control)
