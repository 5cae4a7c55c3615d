# What tables are made of, from some shards each, so that a cluster shares the work; the tables gather it.
rule reduced:
    input:
        lambda wildcards: [f"results/captures/{wildcards.model}/{shard}.h5" for shard in PARTS[wildcards.part]],
    output:
        "results/reduced/{model}/{part}.h5",
    log:
        "logs/reduced/{model}/{part}.log",
    benchmark:
        "results/costs/reduced/{model}/{part}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        code=code_of("reduced.py"),
        expected=lambda wildcards: expected_of(wildcards.model, PARTS[wildcards.part]),
        needs={
            "lengths": sorted(CORRELATED_LENGTHS.union(REPORTED_LENGTHS)),
            "scored": PREDICTOR_LENGTHS,
            "thresholds": config["sinks"]["thresholds"],
        },
    message:
        "Reducing captures of {wildcards.model}, part {wildcards.part}"
    script:
        "../scripts/reduced.py"


rule scores:
    input:
        reduced,
    output:
        **long_tables("scores"),
    log:
        "logs/scores/{model}.log",
    benchmark:
        "results/costs/scores/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("scores.py"),
        threshold=THRESHOLD,
    message:
        "Scoring every head of {wildcards.model}"
    script:
        "../scripts/scores.py"


rule heads:
    input:
        "results/scores/{model}",
    output:
        heads="results/heads/{model}.csv",
        profile="results/layer_profile/{model}.csv",
    log:
        "logs/heads/{model}.log",
    benchmark:
        "results/costs/heads/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("heads.py"),
        resampling=RESAMPLING,
    message:
        "Averaging the heads of {wildcards.model} over prompts"
    script:
        "../scripts/heads.py"


rule correlation:
    input:
        reduced,
    output:
        **{name: f"results/{name}/{{model}}.csv" for name in CORRELATIONS},
    log:
        "logs/correlation/{model}.log",
    benchmark:
        "results/costs/correlation/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        code=code_of("correlation.py"),
        lengths=sorted(CORRELATED_LENGTHS),
        resampling=RESAMPLING,
    message:
        "Correlating the first layer of {wildcards.model} with later ones, at every length"
    script:
        "../scripts/correlation.py"


rule statistics:
    input:
        reduced,
    output:
        **long_tables("lengths"),
        **{name: f"results/{name}/{{model}}.csv" for name in STATISTICS},
    log:
        "logs/statistics/{model}.log",
    benchmark:
        "results/costs/statistics/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        code=code_of("statistics.py"),
        lengths=sorted(CORRELATED_LENGTHS),
        reported=REPORTED_LENGTHS,
        resampling=RESAMPLING,
    message:
        "Counting the sinks of {wildcards.model} by length, layer pair, head and prompt set"
    script:
        "../scripts/statistics.py"


rule predictors:
    input:
        reduced,
    output:
        learning="results/learning/{model}.csv",
        predictors="results/predictors/{model}.csv",
    log:
        "logs/predictors/{model}.log",
    benchmark:
        "results/costs/predictors/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        code=code_of("predictors.py"),
        hold_out=config["statistics"]["hold_out"],
        lengths=PREDICTOR_LENGTHS,
        resampling=RESAMPLING,
    message:
        "Predicting sinks of {wildcards.model} on prompts not seen before"
    script:
        "../scripts/predictors.py"


rule mechanism:
    input:
        reduced,
    output:
        **long_tables("activations", "positions", "sink_positions"),
        mechanism="results/mechanism/{model}.csv",
    log:
        "logs/mechanism/{model}.log",
    benchmark:
        "results/costs/mechanism/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("mechanism.py"),
        resampling=RESAMPLING,
    message:
        "Relating the sinks of {wildcards.model} to activations, values and positions"
    script:
        "../scripts/mechanism.py"


rule comparison:
    input:
        correlation=expand("results/correlation/{model}.csv", model=MODELS),
        heads=expand("results/heads/{model}.csv", model=MODELS),
        heldout=expand("results/heldout/{model}.csv", model=MODELS),
        lengths=expand("results/lengths/{model}", model=MODELS),
        simulated=expand("results/simulation/{preset}.h5", preset=PRESETS),
        simulation=expand("results/simulation/{preset}.csv", preset=PRESETS),
    output:
        beside_simulated="results/beside_simulated.csv",
        comparison="results/comparison.csv",
        control="results/control.csv",
    log:
        "logs/comparison.log",
    benchmark:
        "results/costs/comparison.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("comparison.py"),
        controls=control_pairs(config["models"]),
        lengths=sorted({*REPORTED_LENGTHS, *SIMULATED_LENGTHS}),
        reported=REPORTED_LENGTHS,
        resampling=RESAMPLING,
        threshold=THRESHOLD,
    message:
        "Comparing settings"
    script:
        "../scripts/comparison.py"
