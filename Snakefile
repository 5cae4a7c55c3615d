from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/checks.smk"


configfile: "config.yaml"


report: "workflow/report/study.rst"


include: "workflow/rules/common.smk"


# For `--sdm apptainer`: made from the Dockerfile in the folder that the study runs in, see docs/slurm.md.
container: "sinkstudy.sif"


include: "workflow/rules/models.smk"
include: "workflow/rules/capture.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/simulation.smk"
include: "workflow/rules/attention.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/costs.smk"
include: "workflow/rules/findings.smk"
include: "workflow/rules/reference.smk"


rule all:
    default_target: True
    input:
        "results/findings.html",
        "results/explorer.html",
        FIGURES,
        expand("results/{table}/{model}.csv", table=LONG_TABLES if LONG_AS_CSV else [], model=MODELS),
