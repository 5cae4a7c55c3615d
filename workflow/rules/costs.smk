# Benchmark files of every job whose cost the findings show, by stage; `benchmark:` of a rule and this list agree.
JOBS = {
    "capture": expand("{model}/{shard}", model=MODELS, shard=SHARDS),
    "reduced": expand("{model}/{part}", model=MODELS, part=PARTS),
    **dict.fromkeys(("verification", "scores", "heads", "correlation", "statistics"), MODELS),
    **dict.fromkeys(("mechanism", "predictors", "heldout"), MODELS),
    "bos_arms": BOS_COMPARED,
    "converted": [name for name in MODELS if is_gguf(config["models"][name])],
    "benchmark": TRAINED,
    "quality": TRAINED,
    "skipping": TRAINED,
    "plans": expand("{model}/{policy}", model=TRAINED, policy=POLICIES),
    "simulation": PRESETS,
    "figures": [
        *expand(
            "{kind}_{model}",
            kind=["heatmaps", "lengths", "maps", "mechanism", "predictors", "statistics"],
            model=MODELS,
        ),
        *expand("timing_{model}", model=TRAINED),
        *expand("bos_arms_{model}", model=BOS_COMPARED),
        *expand("simulated_{preset}", preset=PRESETS),
        "comparison",
    ],
}


rule costs:
    input:
        **{stage: expand("results/costs/{stage}/{job}.tsv", stage=stage, job=jobs) for stage, jobs in JOBS.items()},
        comparison=["results/costs/comparison.tsv"],
        explorer=["results/costs/explorer.tsv"],
    output:
        "results/costs.csv",
    log:
        "logs/costs.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("costs.py"),
    message:
        "Adding up what the study cost"
    script:
        "../scripts/costs.py"
