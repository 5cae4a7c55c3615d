"""What leaving a model's layers on disk costs: a capture of 4,096 tokens in all, offloaded and in memory.

    python benchmarks/rehearsal.py ~/rehearsal --shape 1b --only scores
    python benchmarks/offload.py ~/rehearsal/model            # writes benchmarks/offload_<device>.csv

Each in a process of its own, in turn, and their captures are compared: they must hold the same numbers. `load_s` is
from nothing to a loaded model, `capture_s` from there to the written file, `peak_mb` the most the process ever held.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, TOKENS = 32, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a directory in Hugging Face format")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("OFFLOAD", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.model, *arguments.worker)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            files = {offload: f"{folder}/{offload}.h5" for offload in ("never", "always")}
            for offload, file in files.items():
                command = [sys.executable, __file__, str(arguments.model), "--worker", offload, file]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows.append({"offload": offload, "round": turn} | json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], file=sys.stderr, flush=True)
            compare(*files.values())
    table = pd.DataFrame(rows)
    device = table["device"].iloc[0]
    table.to_csv(Path(__file__).with_name(f"offload_{device}.csv"), index=False, float_format="%.4g")
    middle = table.groupby("offload")[["seconds", "cpu_s", "peak_mb"]].median()
    print(middle, (middle.loc["always"] / middle.loc["never"]).rename("offloaded / in memory"), sep="\n\n")


def measure(folder: Path, offload: str, file: str) -> dict[str, float | str]:
    """One capture of the first tokens of as many stretches of the held-out text."""
    start = time.perf_counter()
    import resource

    from sinkstudy.capture.recording import record
    from sinkstudy.models.loading import load_model
    from sinkstudy.models.spec import ModelSpec
    from sinkstudy.prompts import Prompt

    text = (ROOT / "texts/heldout.txt").read_text(encoding="utf-8")
    starts = np.linspace(0, len(text) - 10 * TOKENS, PROMPTS).astype(int)
    prompts = [Prompt(f"p{at}", "text", text[at : at + 10 * TOKENS]) for at in starts]
    loaded = load_model(ModelSpec(str(folder)), offload)
    ready = time.perf_counter()
    record(Path(file), "model", loaded, prompts, maps_max_tokens=TOKENS, max_tokens=TOKENS)
    done, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    times = {"load_s": ready - start, "capture_s": done - ready, "seconds": done - start}
    return times | {
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_mb": int(peak) * 1024 / 1e6,
        "device": loaded.model.device.type,
    }


def compare(one: str, other: str) -> None:
    """Fail where two captures differ in a number."""
    from sinkstudy.store import read_captures

    for a, b in zip(read_captures([Path(one)]), read_captures([Path(other)]), strict=True):
        if a.n_tokens != TOKENS or not np.array_equal(a.key_mass, b.key_mass, equal_nan=True):
            sys.exit(f"prompt {a.prompt} has {a.n_tokens} tokens, or its captures differ")


if __name__ == "__main__":
    main()
