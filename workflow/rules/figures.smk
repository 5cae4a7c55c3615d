FIGURES = [
    f"results/figures/{name}.{ending}"
    for ending in FORMATS
    for name in (
        *expand("heatmap_{model}_{set}", model=MODELS, set=[*SETS, "all"]),
        *expand(
            "{kind}_{model}",
            kind=["activation", "contour", "head_curves", "layers", "lengths", "maps", "positions", "predictors"],
            model=MODELS,
        ),
        *expand("{kind}_{model}", kind=["timing", "tradeoff"], model=TRAINED),
        *expand("bos_arms_{model}", model=BOS_COMPARED),
        *expand("{kind}_{model}", kind=STATISTICS_FIGURES, model=MODELS),
        *expand("simulated_{preset}", preset=PRESETS),
        *expand("comparison_{kind}", kind=COMPARISONS),
    )
]

if len(set(FIGURES)) < len(FIGURES):
    sys.exit("error: models and prompt sets give two figures the same name; rename one of them.")


rule heatmaps:
    input:
        heads="results/heads/{model}.csv",
        profile="results/layer_profile/{model}.csv",
    output:
        [drawn(f"heatmap_{{model}}_{name}", "{model}", "heads", f"set {name}", "heatmap") for name in [*SETS, "all"]],
        drawn("contour_{model}", "{model}", "heads", "threshold contour", "contour"),
        drawn("layers_{model}", "{model}", "heads", "layers", "layers"),
    log:
        "logs/figures/heatmaps_{model}.log",
    benchmark:
        "results/costs/figures/heatmaps_{model}.tsv"
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


rule lengths_figures:
    input:
        captures=captures,
        curves="results/curves/{model}.csv",
    output:
        heads=drawn("head_curves_{model}", "{model}", "lengths", "every head", "head_curves"),
        lengths=drawn("lengths_{model}", "{model}", "lengths", "sinks and scores"),
    log:
        "logs/figures/lengths_{model}.log",
    benchmark:
        "results/costs/figures/lengths_{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_lengths.py"),
        expected=expected,
        threshold=THRESHOLD,
    message:
        "Drawing scores of {wildcards.model} against length"
    script:
        "../scripts/fig_lengths.py"


rule statistics_figures:
    input:
        curves="results/curves/{model}.csv",
        heldout="results/heldout/{model}.csv",
        layer_pairs="results/layer_pairs/{model}.csv",
        persistence="results/persistence/{model}.csv",
        weakening="results/weakening/{model}.csv",
    output:
        [
            drawn(f"{kind}_{{model}}", "{model}", kind.replace("_", " "), label, kind)
            for kind, label in STATISTICS_FIGURES.items()
        ],
    log:
        "logs/figures/statistics_{model}.log",
    benchmark:
        "results/costs/figures/statistics_{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_statistics.py"),
        lengths=REPORTED_LENGTHS,
        threshold=THRESHOLD,
    message:
        "Drawing the statistics of {wildcards.model}"
    script:
        "../scripts/fig_statistics.py"


rule predictors_figure:
    input:
        learning="results/learning/{model}.csv",
        predictors="results/predictors/{model}.csv",
    output:
        drawn("predictors_{model}", "{model}", "predictors", "what tells later sinks"),
    log:
        "logs/figures/predictors_{model}.log",
    benchmark:
        "results/costs/figures/predictors_{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_predictors.py"),
        threshold=THRESHOLD,
    message:
        "Drawing what predicts sinks of {wildcards.model}"
    script:
        "../scripts/fig_predictors.py"


rule mechanism_figures:
    input:
        mechanism="results/mechanism/{model}.csv",
        positions="results/positions/{model}",
        sink_positions="results/sink_positions/{model}",
    output:
        activation=drawn("activation_{model}", "{model}", "mechanism", "activation", "activation"),
        positions=drawn("positions_{model}", "{model}", "mechanism", "positions", "positions"),
    log:
        "logs/figures/mechanism_{model}.log",
    benchmark:
        "results/costs/figures/mechanism_{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_mechanism.py"),
    message:
        "Drawing activations and positions of {wildcards.model}"
    script:
        "../scripts/fig_mechanism.py"


rule bos_arms_figure:
    input:
        "results/bos_arms/{model}.csv",
    output:
        drawn("bos_arms_{model}", "{model}", "mechanism", "settings of bos", "bos_arms"),
    log:
        "logs/figures/bos_arms_{model}.log",
    benchmark:
        "results/costs/figures/bos_arms_{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_bos_arms.py"),
    message:
        "Drawing {wildcards.model} under each setting of bos"
    script:
        "../scripts/fig_bos_arms.py"


rule maps_figure:
    input:
        captures=captures,
        scores="results/scores/{model}",
    output:
        drawn("maps_{model}", "{model}", "maps", "three heads"),
    log:
        "logs/figures/maps_{model}.log",
    benchmark:
        "results/costs/figures/maps_{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("fig_maps.py"),
        expected=expected,
        threshold=THRESHOLD,
    message:
        "Drawing example attention maps of {wildcards.model}"
    script:
        "../scripts/fig_maps.py"


rule timing_figure:
    input:
        "results/benchmark/{model}.csv",
    output:
        timing=drawn("timing_{model}", "{model}", "timing", "speedup"),
        tradeoff=drawn("tradeoff_{model}", "{model}", "timing", "speed against quality", "tradeoff"),
    log:
        "logs/figures/timing_{model}.log",
    benchmark:
        "results/costs/figures/timing_{model}.tsv"
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
        drawn("simulated_{preset}", "simulated", "{preset}", "scores and decisions", "simulated"),
    log:
        "logs/figures/simulated_{preset}.log",
    benchmark:
        "results/costs/figures/simulated_{preset}.tsv"
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
            drawn(f"comparison_{kind}", "comparison", kind.replace("_", " "), "bars", "comparison")
            for kind in COMPARISONS
        ],
    log:
        "logs/figures/comparison.log",
    benchmark:
        "results/costs/figures/comparison.tsv"
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
