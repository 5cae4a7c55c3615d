rule simulation:
    output:
        csv="results/simulation/{preset}.csv",
        h5="results/simulation/{preset}.h5",
    log:
        "logs/simulation/{preset}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("simulation.py"),
        preset=lambda wildcards: dict(sorted(config["simulation"][wildcards.preset].items())),
        resampling=dict(sorted(config["statistics"].items())),
        threshold=THRESHOLD,
    message:
        "Simulating {wildcards.preset}: nothing here is measured"
    script:
        "../scripts/simulation.py"
