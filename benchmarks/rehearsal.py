"""The study on a checkpoint of full size with planted sinks, so the truth is known: of Llama-3.1-8B's shape, or 1B's.

    python benchmarks/rehearsal.py ~/rehearsal                # 16 GB of model, then every result, in that folder
    python benchmarks/rehearsal.py ~/rehearsal --only scores  # no further than the scores
    python benchmarks/rehearsal.py ~/rehearsal --only scores --memory 8                  # every process within 8 GiB
    python benchmarks/rehearsal.py ~/rehearsal --only scores --memory 8 --offload never  # ends in one sentence

Builds the model (bfloat16 safetensors in shards, a byte-level BPE tokenizer) and a configuration, runs Snakemake on
it, and compares every head of every prompt with what was planted. Fails where one differs. Nothing is downloaded, and
nothing is written outside the folder.
"""

import argparse
import csv
import resource
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from sinkstudy.prompts import read_prompts
from sinkstudy.reference.planted import save_planted

ROOT = Path(__file__).resolve().parent.parent
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
STRENGTH = 0.99  # sink score of a planted head at PLANTED_AT tokens; shorter prompts score higher still
PLANTED_AT = 512
MAX_TOKENS = 128  # The rehearsal captures the study's prompts of up to so many tokens.
SHARD_BYTES = 1 << 30
SHAPES = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    # This shape has no published model; it lets one try the command in a minute.
    "small": {
        "vocab_size": 600,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where model and results go; outside the repository")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", choices=["scores"], help="no further than this table")
    parser.add_argument("--offload", choices=["auto", "always", "never"], default="auto")
    parser.add_argument("--memory", type=float, help="GiB of address space that each process may use")
    arguments = parser.parse_args()
    folder, shape = arguments.folder.expanduser().resolve(), SHAPES[arguments.shape]
    if folder.is_relative_to(ROOT):
        parser.error(f"{folder} is inside the repository; give a folder outside of it")
    folder.mkdir(parents=True, exist_ok=True)
    planted = planted_heads(shape)
    start = time.perf_counter()
    if not (folder / "model/tokenizer.json").exists():
        build(folder / "model", shape, planted)
    built = time.perf_counter()
    write_study(folder, arguments.offload)
    peaks = run(folder, arguments.cores, arguments.only, arguments.memory)
    done = time.perf_counter()
    print(check(pd.read_csv(folder / "results/scores/planted.csv"), planted))
    print(f"model {(built - start) / 60:.1f} min, study {(done - built) / 60:.1f} min on {arguments.cores} cores")
    for whose, peak in peaks.items():
        print(f"largest memory of {whose}: {peak / 2**30:.2f} GiB (resident, sampled five times a second)")


def planted_heads(shape: dict[str, int]) -> np.ndarray:
    """Which heads are sinks, (layer, head) bool: a quarter of the first layer's; in later layers 80% of the heads with
    their indices, and 30% of the others, so that the first layer does predict the others."""
    rng = np.random.default_rng(0)
    layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    first = np.arange(heads) % 4 == 0
    later = rng.random((layers - 1, heads)) < np.where(first, 0.8, 0.3)
    return np.vstack([first, later])


def build(folder: Path, shape: dict[str, int], planted: np.ndarray) -> None:
    """Write the checkpoint and, last of all, its tokenizer."""
    config = LlamaConfig(
        **shape,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=0,
        eos_token_id=1,
    )
    shard_bytes = SHARD_BYTES if shape is not SHAPES["small"] else 1 << 20
    save_planted(folder, config, planted * STRENGTH, PLANTED_AT, torch.bfloat16, shard_bytes)
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


def write_study(folder: Path, offload: str) -> None:
    """The repository's short prompts, and a modest grid of timings: a pass over these models takes long on a CPU."""
    encode = tokenizer()
    prompts = [one for one in read_prompts(ROOT / "prompts.tsv") if len(encode(one.text)["input_ids"]) <= MAX_TOKENS]
    with (folder / "prompts.tsv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(
            [("prompt", "set", "text"), *((one.id, one.set, one.text) for one in prompts)]
        )
    config = {
        "models": {"planted": {"source": "model"}},
        "prompts": "prompts.tsv",
        "capture": {"offload": offload},
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


def run(folder: Path, cores: int, only: str | None, memory: float | None) -> dict[str, int]:
    """Run the study; the most bytes that one of its processes held, and all of them at once."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores)]
    command += ["--directory", str(folder), *([f"results/{only}/planted.csv"] if only else [])]
    peaks, ended = {"one process": 0, "all processes together": 0}, threading.Event()

    def limit() -> None:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)

    process = subprocess.Popen(command, preexec_fn=limit)

    def watch() -> None:
        while not ended.wait(0.2):
            held = _resident(process.pid)
            for whose, amount in zip(peaks, (max(held, default=0), sum(held)), strict=True):
                peaks[whose] = max(peaks[whose], amount)

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    ended.set()
    watcher.join()
    if status:
        sys.exit(f"the study failed; its logs are in {folder}/logs")
    return peaks


def _resident(pid: int) -> list[int]:
    """Bytes of each process of a tree."""
    held = []
    with suppress(psutil.NoSuchProcess):  # A process may end after it was listed.
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            held.append(process.memory_info().rss)
    return held


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
