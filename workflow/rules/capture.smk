rule capture:
    input:
        # The table's time stamp says nothing about this shard; its digest, a parameter, does.
        prompts=ancient(config["prompts"]),
        model=model_inputs,
    output:
        "results/captures/{model}/{shard}.h5",
    log:
        "logs/capture/{model}/{shard}.log",
    benchmark:
        "results/costs/capture/{model}/{shard}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        code=code_of("capture.py"),
        keep=KEEP,
        maps_max_tokens=config["capture"]["maps_max_tokens"],
        model=model_spec,
        offload=offload,
        positions_max_tokens=config["capture"]["positions_max_tokens"],
        prompts=shard_digest,
        tokens_per_job=config["capture"]["tokens_per_job"],
        too_long=config["capture"]["too_long"],
    message:
        "Capturing {wildcards.model}, prompts of shard {wildcards.shard}"
    script:
        "../scripts/capture.py"


rule bos_arms:
    input:
        model=model_inputs,
        prompts=ancient(config["prompts"]),
    output:
        captures=directory("results/bos_arms/{model}"),
        table="results/bos_arms/{model}.csv",
    log:
        "logs/bos_arms/{model}.log",
    benchmark:
        "results/costs/bos_arms/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=60,
    params:
        arms=config["capture"]["bos_arms"],
        code=code_of("bos_arms.py"),
        lengths=REPORTED_LENGTHS,
        model=model_spec,
        offload=offload,
        prompts=digest(PROMPTS),
        resampling=RESAMPLING,
        threshold=THRESHOLD,
    message:
        "Capturing {wildcards.model} under other settings of bos"
    script:
        "../scripts/bos_arms.py"


rule verification:
    input:
        captures=captures,
        model=model_inputs,
    output:
        "results/verification/{model}.csv",
    log:
        "logs/verification/{model}.log",
    benchmark:
        "results/costs/verification/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=32000,
        runtime=60,
    params:
        code=code_of("verification.py"),
        expected=expected,
        model=model_spec,
        offload=offload,
        sample=config["capture"]["verify_prompts"],
    message:
        "Recomputing captures of {wildcards.model} by eager attention"
    script:
        "../scripts/verification.py"


rule verify_capture:
    input:
        expand("results/verification/{model}.csv", model=MODELS),
