"""Planning a study of ten thousand prompts and five models."""

import os
import subprocess
import sys

import pytest
import yaml
from study import ROOT, SMALL, write_prompts

PLAN = """
import sys
from snakemake.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch imported:", "torch" in sys.modules)
"""


@pytest.mark.slow
def test_planning_ten_thousand_prompts_and_five_models_is_quick_and_small_and_loads_no_torch(tmp_path):
    source = SMALL["models"]["reference"]["source"]
    models = {f"m{i}": {"source": source, "random_weights": i} for i in range(5)}
    settings = {"models": models, "prompts": "prompts.tsv", "benchmark": SMALL["benchmark"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    write_prompts(tmp_path, [(f"p{i}", ("short", "long")[i % 2], f"Prompt {i} of many.") for i in range(10_000)])
    told = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path), "-n", "--cores", "2"]
    with (tmp_path / "output.txt").open("w+") as output:
        started = subprocess.Popen([sys.executable, "-c", PLAN, *told], stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    assert started.returncode == 0, said[-2000:]
    assert "torch imported: False" in said
    assert f"{5 * 625}" in said  # captures: 625 shards of 16 prompts for each model
    assert used.ru_utime + used.ru_stime <= 20  # seconds of processor time, which a busy machine does not stretch
    assert used.ru_maxrss <= 1 << 20  # KiB
