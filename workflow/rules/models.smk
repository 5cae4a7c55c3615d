# Runs where Snakemake runs, which may be the only place with a network; jobs then read the cache, offline.
localrules:
    fetch_model,


rule fetch_model:
    output:
        "results/models/{model}.json",
    log:
        "logs/models/{model}.log",
    conda:
        "../../envs/sinkstudy.yaml"
    params:
        # No fingerprint of the code: a branch is looked up once, and an edit must not move the study to its new tip.
        model=fetch_request,
    message:
        "Fetching {wildcards.model}"
    script:
        "../scripts/fetch_model.py"


rule convert_model:
    input:
        gguf_input,
    output:
        "results/converted/{model}.json",
    log:
        "logs/converted/{model}.log",
    benchmark:
        "results/costs/converted/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        # What is converted lies in a cache of this machine under the digest of the file; jobs read it from there.
        model=gguf_request,
    message:
        "Converting the GGUF file of {wildcards.model}, unless this machine has done so before"
    script:
        "../scripts/convert_model.py"
