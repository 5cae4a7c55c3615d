CONTROLS = [model for model in MODELS if model not in TRAINED]


rule findings:
    input:
        **{
            name: expand(f"results/{name}/{{model}}.csv", model=MODELS)
            for name in [*CORRELATIONS, *STATISTICS, "mechanism"]
            if name != "persistence"
        },
        **{name: expand(f"results/{name}/{{model}}", model=MODELS) for name in ("lengths", "scores", "sink_positions")},
        answers=expand("results/answers/{model}.csv", model=TRAINED),
        benchmark=expand("results/benchmark/{model}.csv", model=TRAINED),
        beside_simulated=["results/beside_simulated.csv"],
        bos_arms=expand("results/bos_arms/{model}.csv", model=BOS_COMPARED),
        captures=expand("results/captures/{model}/{shard}.h5", model=MODELS, shard=list(SHARDS)[0]),
        comparison=["results/comparison.csv"],
        control=["results/control.csv"],
        cost_stand_ins=expand("results/cost_stand_ins/{model}.csv", model=COSTED),
        costs=["results/costs.csv"],
        figures=[path for path in FIGURES if path.endswith(".png")],
        head_costs=expand("results/head_costs/{model}.csv", model=COSTED),
        heads=expand("results/heads/{model}.csv", model=MODELS),
        heldout_errors=expand("results/heldout_errors/{model}.csv", model=MODELS),
        learning=expand("results/learning/{model}.csv", model=MODELS),
        predictors=expand("results/predictors/{model}.csv", model=MODELS),
        quality=expand("results/quality/{model}.csv", model=TRAINED),
        retrieval=expand("results/retrieval/{model}.csv", model=TRAINED),
        skipping=expand("results/skipping/{model}.csv", model=TRAINED),
        verification=expand("results/verification/{model}.csv", model=MODELS),
        simulation=expand("results/simulation/{preset}.csv", preset=PRESETS),
    output:
        html=report("results/findings.html", category="findings", caption="../report/findings.rst"),
        md="results/findings.md",
        verdicts="results/verdicts.json",
    log:
        "logs/findings.log",
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("findings.py"),
        controls=CONTROLS,
        expected=[expected_of(model, list(SHARDS)[:1]) for model in MODELS],
        long_as_csv=LONG_AS_CSV,
        threshold=THRESHOLD,
    message:
        "Writing the findings"
    script:
        "../scripts/findings.py"


rule explorer:
    input:
        bos_arms=expand("results/bos_arms/{model}", model=BOS_COMPARED),
        captures=[f"results/captures/{model}/{shard}.h5" for model in MODELS for shard in SHARDS],
        costs=expand("results/head_costs/{model}.csv", model=COSTED),
        plans=expand("results/plans/{model}/{policy}.json", model=TRAINED, policy=POLICIES),
    output:
        "results/explorer.html",
    log:
        "logs/explorer.log",
    benchmark:
        "results/costs/explorer.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        code=code_of("explorer.py"),
        expected={model: expected_of(model) for model in MODELS},
        threshold=THRESHOLD,
        thresholds=config["sinks"]["thresholds"],
    message:
        "Writing the explorer"
    script:
        "../scripts/explorer.py"
