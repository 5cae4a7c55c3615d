FIGURES = [
    f"results/figures/{name}.{ending}"
    for ending in FORMATS
    for name in (
        *expand("heatmap_{model}_{set}", model=MODELS, set=[*SETS, "all"]),
        *expand("{kind}_{model}", kind=["contour", "layers", "lengths", "maps", "timing"], model=MODELS),
        *expand("simulated_{preset}", preset=PRESETS),
        *expand("comparison_{kind}", kind=COMPARISONS),
    )
]

if len(set(FIGURES)) < len(FIGURES):
    raise WorkflowError("models and prompt sets give two figures the same name; rename one of them.")


rule heatmaps:
    input:
        "results/heads/{model}.csv",
    output:
        [
            report(
                f"results/figures/{kind}.{ending}",
                category="{model}",
                subcategory=sub,
                labels={"figure": label, "format": ending},
                caption=f"../report/{sub}.rst",
            )
            for ending in FORMATS
            for kind, sub, label in (
                *((f"heatmap_{{model}}_{name}", "heatmap", name) for name in [*SETS, "all"]),
                ("contour_{model}", "contour", "all prompts"),
                ("layers_{model}", "layers", "all prompts"),
            )
        ],
    log:
        "logs/figures/heatmaps_{model}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_heatmaps.py"),
        threshold=THRESHOLD,
    message:
        "Drawing the heads of {wildcards.model}"
    script:
        "../scripts/fig_heatmaps.py"


rule lengths_figure:
    input:
        "results/lengths/{model}.csv",
    output:
        report(
            expand("results/figures/lengths_{{model}}.{ending}", ending=FORMATS),
            category="{model}",
            subcategory="lengths",
            caption="../report/lengths.rst",
        ),
    log:
        "logs/figures/lengths_{model}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_lengths.py"),
    message:
        "Drawing scores of {wildcards.model} against length"
    script:
        "../scripts/fig_lengths.py"


rule maps_figure:
    input:
        captures=captures,
        scores="results/scores/{model}.csv",
    output:
        report(
            expand("results/figures/maps_{{model}}.{ending}", ending=FORMATS),
            category="{model}",
            subcategory="maps",
            caption="../report/maps.rst",
        ),
    log:
        "logs/figures/maps_{model}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_maps.py"),
    message:
        "Drawing example attention maps of {wildcards.model}"
    script:
        "../scripts/fig_maps.py"


rule timing_figure:
    input:
        "results/benchmark/{model}.csv",
    output:
        report(
            expand("results/figures/timing_{{model}}.{ending}", ending=FORMATS),
            category="{model}",
            subcategory="timing",
            caption="../report/timing.rst",
        ),
    log:
        "logs/figures/timing_{model}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_timing.py"),
    message:
        "Drawing the timing of {wildcards.model}"
    script:
        "../scripts/fig_timing.py"


rule simulated_figure:
    input:
        "results/simulation/{preset}.h5",
    output:
        report(
            expand("results/figures/simulated_{{preset}}.{ending}", ending=FORMATS),
            category="simulated",
            subcategory="{preset}",
            caption="../report/simulated.rst",
        ),
    log:
        "logs/figures/simulated_{preset}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_simulated.py"),
    message:
        "Drawing the simulated matrices of {wildcards.preset}"
    script:
        "../scripts/fig_simulated.py"


rule comparison_figures:
    input:
        "results/comparison.csv",
    output:
        [
            report(
                f"results/figures/comparison_{kind}.{ending}",
                category="comparison",
                subcategory=kind.replace("_", " "),
                labels={"format": ending},
                caption="../report/comparison.rst",
            )
            for ending in FORMATS
            for kind in COMPARISONS
        ],
    log:
        "logs/figures/comparison.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_comparison.py"),
    message:
        "Drawing the comparisons"
    script:
        "../scripts/fig_comparison.py"
