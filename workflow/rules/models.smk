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
        model=hub_request,
    message:
        "Fetching {wildcards.model} from the Hub"
    script:
        "../scripts/fetch_model.py"
