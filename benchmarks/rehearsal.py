"""The whole study on a checkpoint of full size: the shape of Llama-3.2-1B, with planted sinks, so the truth is known.

    python benchmarks/rehearsal.py ~/rehearsal              # 2.5 GB of model, then every result, in that folder

Builds the model (bfloat16 safetensors in shards, a byte-level BPE tokenizer) and a configuration, runs Snakemake on
it, and compares every head of every prompt with what was planted. Fails where one differs. Nothing is downloaded, and
nothing is written outside the folder.
"""

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from sinkstudy.reference.planted import plant_sinks

ROOT = Path(__file__).resolve().parent.parent
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
STRENGTH = 0.99  # sink score of a planted head at PLANTED_AT tokens; shorter prompts score higher still
PLANTED_AT = 512
FULL = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
# To try the command itself: the same in miniature.
SMALL = {
    "vocab_size": 600,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where model and results go; outside the repository")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="3 layers of 8 heads instead of 16 of 32")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    if folder.is_relative_to(ROOT):
        parser.error(f"{folder} is inside the repository; give a folder outside of it")
    folder.mkdir(parents=True, exist_ok=True)
    planted = planted_heads(SMALL if arguments.small else FULL)
    start = time.perf_counter()
    if not (folder / "model/config.json").exists():
        build(folder / "model", SMALL if arguments.small else FULL, planted)
    built = time.perf_counter()
    write_study(folder)
    peak = run(folder, arguments.cores)
    done = time.perf_counter()
    print(check(pd.read_csv(folder / "results/scores/planted.csv"), planted))
    print(f"model {(built - start) / 60:.1f} min, study {(done - built) / 60:.1f} min on {arguments.cores} cores")
    print(f"largest memory of all processes together: {peak / 1e9:.1f} GB (resident, sampled every second)")
    print(f"{folder}/results/findings.md has the cost of every stage")


def planted_heads(shape: dict[str, int]) -> np.ndarray:
    """Which heads are sinks, (layer, head) bool: a quarter of the first layer's; in later layers 80% of the heads with
    their indices, and 30% of the others, so that the first layer does predict the others."""
    rng = np.random.default_rng(0)
    layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    first = np.arange(heads) % 4 == 0
    later = rng.random((layers - 1, heads)) < np.where(first, 0.8, 0.3)
    return np.vstack([first, later])


def build(folder: Path, shape: dict[str, int], planted: np.ndarray) -> None:
    """Write the checkpoint and its tokenizer."""
    config = LlamaConfig(
        **shape,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = plant_sinks(config, planted * STRENGTH, n_tokens=PLANTED_AT)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1GB" if shape is FULL else "1MB")
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 600 tokens learned from the repository's training text; BOS goes first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([(ROOT / "texts/training.txt").read_text(encoding="utf-8")], trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS)


def write_study(folder: Path) -> None:
    """The repository's prompts, and a modest grid of timings: a pass over this model takes seconds on a CPU."""
    config = {
        "models": {"planted": {"source": "model"}},
        "prompts": str(ROOT / "config/quick_prompts.tsv"),
        "benchmark": {
            "text": str(ROOT / "texts/heldout.txt"),
            "lengths": [24, 128],
            "policies": ["consistent"],
            "strategies": ["first_value"],
            "repeats": 3,
            "seconds_per_cell": 0,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def run(folder: Path, cores: int) -> int:
    """Run the study; the most bytes that Snakemake and its jobs held at once."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores)]
    process = subprocess.Popen([*command, "--directory", str(folder)])
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            peak.append(max(peak.pop(), _resident(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    ended.set()
    watcher.join()
    if status:
        sys.exit(f"the study failed; its logs are in {folder}/logs")
    return peak[0]


def _resident(pid: int) -> int:
    total = 0
    try:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # ended between listing and looking
        pass
    return total


def check(scores: pd.DataFrame, planted: np.ndarray) -> str:
    """Compare every head on every prompt with what was planted: a sink has an excess score of at least 0.9."""
    scores = scores[scores["n_tokens"] > 1]
    truth = planted[scores["layer"], scores["head"]]
    wrong = scores[(scores["excess_score"] >= 0.9) != truth]
    if len(wrong):
        sys.exit(f"{len(wrong)} of {len(scores)} heads differ from what was planted, the first:\n{wrong.iloc[0]}")
    prompts = scores["prompt"].nunique()
    return f"all {planted.size} heads as planted ({int(planted.sum())} sinks) on each of {prompts} prompts"


if __name__ == "__main__":
    main()
