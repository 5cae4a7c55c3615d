rule plan:
    input:
        "results/scores/{model}",
    output:
        "results/plans/{model}/{policy}.json",
    log:
        "logs/plans/{model}/{policy}.log",
    benchmark:
        "results/costs/plans/{model}/{policy}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        code=code_of("plan.py"),
        max_tokens=config["benchmark"]["max_tokens"],
        min_tokens=config["benchmark"]["consistent_min_tokens"],
        share=config["benchmark"]["consistent_share"],
        sink_window={key: config["benchmark"][key] for key in ("sink_tokens", "window")},
        threshold=THRESHOLD,
    message:
        "Choosing heads of {wildcards.model} by policy {wildcards.policy}"
    script:
        "../scripts/plan.py"


rule layerwise_plan:
    input:
        model=model_inputs,
        plan="results/plans/{model}/consistent.json",
        prompts=config["prompts"],
    output:
        "results/plans/{model}/layerwise.json",
    log:
        "logs/plans/{model}/layerwise.log",
    benchmark:
        "results/costs/plans/{model}/layerwise.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=60,
    params:
        budget=config["benchmark"]["layerwise_budget"],
        code=code_of("plan_layerwise.py"),
        model=model_spec,
        offload=offload,
    message:
        "Measuring what replacing the heads of {wildcards.model} costs, layer by layer"
    script:
        "../scripts/plan_layerwise.py"


rule budget_plan:
    input:
        activations="results/activations/{model}",
        heads="results/heads/{model}.csv",
        model=model_inputs,
        prompts=config["prompts"],
    output:
        costs="results/head_costs/{model}.csv",
        plan="results/plans/{model}/budget.json",
        stand_ins="results/cost_stand_ins/{model}.csv",
    log:
        "logs/plans/{model}/budget.log",
    benchmark:
        "results/costs/plans/{model}/budget.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=60,
    params:
        budget={
            key: config["benchmark"][f"budget_{key}"]
            for key in ("kl", "retrieval", "tokens", "whole_groups", "window")
        },
        code=code_of("plan_budget.py"),
        max_tokens=config["benchmark"]["max_tokens"],
        model=model_spec,
        offload=offload,
        seed=config["statistics"]["seed"],
        sink_tokens=config["benchmark"]["sink_tokens"],
    message:
        "Estimating what replacing each head of {wildcards.model} costs, and spending a budget on the cheapest"
    script:
        "../scripts/plan_budget.py"


rule benchmark:
    input:
        model=model_inputs,
        plans=expand("results/plans/{{model}}/{policy}.json", policy=POLICIES),
        text=config["benchmark"]["text"],
    output:
        "results/benchmark/{model}.csv",
    log:
        "logs/benchmark/{model}.log",
    benchmark:
        "results/costs/benchmark/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    # All cores: nothing else runs beside a timing. A cluster, where jobs have cores of their own, is asked for 8.
    threads: workflow.resource_settings.cores or 8
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        code=code_of("benchmark.py"),
        grid={
            key: config["benchmark"][key]
            for key in ("batches", "lengths", "precision", "repeats", "seconds_per_cell", "strategies")
        },
        model=model_spec,
        offload=offload,
    message:
        "Timing {wildcards.model} with and without its sink heads replaced"
    script:
        "../scripts/benchmark.py"


rule quality:
    input:
        model=model_inputs,
        plans=expand("results/plans/{{model}}/{policy}.json", policy=POLICIES),
        prompts=config["prompts"],
        text=config["benchmark"]["text"],
    output:
        answers="results/answers/{model}.csv",
        quality="results/quality/{model}.csv",
        retrieval="results/retrieval/{model}.csv",
    log:
        "logs/quality/{model}.log",
    benchmark:
        "results/costs/quality/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        answer_prompts=config["benchmark"]["answer_prompts"],
        answer_tokens=config["benchmark"]["answer_tokens"],
        code=code_of("quality.py"),
        lengths=config["benchmark"]["lengths"],
        model=model_spec,
        offload=offload,
        retrieval_cases=config["benchmark"]["retrieval_cases"],
        strategies=config["benchmark"]["strategies"],
    message:
        "Comparing predictions and answers of {wildcards.model} with and without its sink heads"
    script:
        "../scripts/quality.py"


rule skipping:
    input:
        activations="results/activations/{model}",
        heads="results/heads/{model}.csv",
        model=model_inputs,
        plans=expand("results/plans/{{model}}/{policy}.json", policy=POLICIES),
        text=config["benchmark"]["text"],
    output:
        "results/skipping/{model}.csv",
    log:
        "logs/skipping/{model}.log",
    benchmark:
        "results/costs/skipping/{model}.tsv"
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=120,
    params:
        code=code_of("skipping.py"),
        lengths=[n for n in config["benchmark"]["lengths"] if n <= config["benchmark"]["skipping_tokens"]],
        model=model_spec,
        offload=offload,
        resampling=RESAMPLING,
    message:
        "Replacing the heads that policies chose in {wildcards.model}, and as many others"
    script:
        "../scripts/skipping.py"
