"""Planning a study of a hundred thousand prompts and five models."""

import re
import subprocess
import sys

import pytest
import yaml
from study import ROOT, SMALL, write_prompts

PLAN = """
import os, sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch imported:", "torch" in sys.modules)
    print("seconds of processor time:", sum(os.times()[:4]))
    # Not what wait4 tells: that begins with the memory of the process this one was forked from.
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
def test_planning_a_hundred_thousand_prompts_and_five_models_is_quick_and_small_and_loads_no_torch(tmp_path):
    source = SMALL["models"]["reference"]["source"]
    models = {f"m{i}": {"source": source, "random_weights": i} for i in range(5)}
    settings = {"models": models, "prompts": "prompts.tsv", "benchmark": SMALL["benchmark"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    write_prompts(tmp_path, [(f"p{i}", ("short", "long")[i % 2], f"Prompt {i} of many.") for i in range(100_000)])
    told = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), "-n", "--cores", "2"]
    done = subprocess.run(
        [sys.executable, "-c", PLAN, *told], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = done.stdout
    assert done.returncode == 0, said[-2000:]
    assert "torch imported: False" in said
    assert re.search(r"^capture +370$", said, re.M)  # for each model 74 shards of about 8,192 tokens
    # Processor time, which a busy machine does not stretch as it does the clock's.
    assert float(re.search(r"seconds of processor time: (\S+)", said)[1]) <= 20
    assert int(re.search(r"VmHWM:\s+(\d+) kB", said)[1]) <= 1 << 20
