rule scores:
    input:
        captures,
    output:
        "results/scores/{model}.csv",
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
        expected=expected,
        threshold=THRESHOLD,
    message:
        "Scoring every head of {wildcards.model}"
    script:
        "../scripts/scores.py"


rule heads:
    input:
        "results/scores/{model}.csv",
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


rule statistics:
    input:
        captures,
    output:
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
        expected=expected,
        lengths=sorted(CORRELATED_LENGTHS),
        reported=REPORTED_LENGTHS,
        resampling=RESAMPLING,
        thresholds=config["sinks"]["thresholds"],
    message:
        "Correlating the layers of {wildcards.model}, at every length and over its prompt sets"
    script:
        "../scripts/statistics.py"


rule predictors:
    input:
        captures,
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
        expected=expected,
        hold_out=config["statistics"]["hold_out"],
        lengths=PREDICTOR_LENGTHS,
        resampling=RESAMPLING,
        thresholds=config["sinks"]["thresholds"],
    message:
        "Predicting sinks of {wildcards.model} on prompts not seen before"
    script:
        "../scripts/predictors.py"


rule mechanism:
    input:
        captures,
    output:
        **{name: f"results/{name}/{{model}}.csv" for name in MECHANISM},
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
        expected=expected,
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
        lengths=expand("results/lengths/{model}.csv", model=MODELS),
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
