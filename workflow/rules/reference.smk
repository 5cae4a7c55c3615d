# Not part of the study: trains the shipped reference model anew, beside the shipped one. Copy the folder over
# models/reference to ship the result.
rule train_reference:
    input:
        evaluation="texts/heldout.txt",
        text="texts/training.txt",
    output:
        directory("results/trained_reference"),
    log:
        "logs/train_reference.log",
    conda:
        "../../envs/sinkstudy.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=120,
    params:
        code=code_of("train_reference.py"),
    message:
        "Training the reference model"
    script:
        "../scripts/train_reference.py"
