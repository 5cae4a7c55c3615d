"""`sinkstudy check`: what the workflow checks before any rule runs."""

from functools import reduce
from pathlib import Path

import yaml

from sinkstudy.prompts import read_prompts, shards
from sinkstudy.workflow.config import check_config, joined, replaced_by_overlays
from sinkstudy.workflow.files import check_folders, check_yaml


def check(configs: list[Path]) -> None:
    """Print what a study of these configurations, later ones over earlier ones, consists of.

    Raises StudyError where the workflow would not start. Paths in a configuration are looked up from here.
    """
    check_yaml(configs)
    layers = [(str(path), yaml.safe_load(path.read_text(encoding="utf-8-sig"))) for path in configs]
    contents = [content for _, content in layers]
    config = replaced_by_overlays(reduce(joined, contents), contents[1:], {})
    checked = check_config(config, Path.cwd(), layers[::-1])
    check_folders([Path("results"), Path("logs")], True)
    prompts = read_prompts(Path(checked["prompts"]))
    sets = len({prompt.set for prompt in prompts})
    parts = len(shards(prompts, checked["capture"]["tokens_per_job"]))
    jobs = "1 job" if parts == 1 else f"{parts} jobs"
    print(f"{' and '.join(map(str, configs))}: nothing is wrong.")
    for name, model in checked["models"].items():
        drawn = "" if model["random_weights"] is None else f", random weights of seed {model['random_weights']}"
        print(f"  model {name}: {model['source']}{drawn}")
    print(f"  {len(prompts)} prompts of {sets} sets in {checked['prompts']}, captured by {jobs} a model")
