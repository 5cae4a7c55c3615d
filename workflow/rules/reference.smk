# Not part of the study: trains the shipped reference model anew, beside the shipped one. Copy the folder over
# models/reference to ship the result.
rule train_reference:
    message:
        "Training the reference model"
    input:
        evaluation="benchmarks/heldout.txt",
        text="models/training_text.txt",
    output:
        directory("results/trained_reference"),
    params:
        code=code_of("train_reference.py"),
    log:
        "logs/train_reference.log",
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=120,
    conda:
        "../../envs/sinkstudy.yaml"
    script:
        "../scripts/train_reference.py"
