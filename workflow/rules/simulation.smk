rule simulation:
    input:
        fitted_captures,
    output:
        csv="results/simulation/{preset}.csv",
        h5="results/simulation/{preset}.h5",
    log:
        "logs/simulation/{preset}.log",
    benchmark:
        "results/costs/simulation/{preset}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("simulation.py"),
        expected=expected,
        preset=lambda wildcards: dict(sorted(config["simulation"][wildcards.preset].items())),
        resampling=RESAMPLING,
        threshold=THRESHOLD,
    message:
        "Simulating {wildcards.preset}: nothing here is measured"
    script:
        "../scripts/simulation.py"


rule heldout:
    input:
        captures,
    output:
        errors="results/heldout_errors/{model}.csv",
        predictions="results/heldout/{model}.csv",
    log:
        "logs/heldout/{model}.log",
    benchmark:
        "results/costs/heldout/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("heldout.py"),
        expected=expected,
        lengths=sorted({*REPORTED_LENGTHS, *SIMULATED_LENGTHS}),
        resampling=RESAMPLING,
        thresholds=config["sinks"]["thresholds"],
    message:
        "Predicting half of the prompts of {wildcards.model} by simulators"
    script:
        "../scripts/heldout.py"
