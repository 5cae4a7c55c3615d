"""Plans of policy `budget` beside StreamingLLM, SnapKV and DuoAttention, as kvpress has them.

    python benchmarks/peers/run.py FOLDER                  # all of it; FOLDER is a model in Hugging Face format
    python benchmarks/peers/run.py FOLDER --only timing    # on a machine that does nothing else

Same weights, held-out texts and KV bytes for all, in float32 on the CPU. kvpress needs an older Transformers, so it
runs in an environment of its own, which the first call makes from requirements.txt; the unmodified model runs in both.
Writes peers.csv and peers.png beside itself; what is not measured anew stays in the table.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pandas as pd
from measure import PATTERN
from table import check_yardstick, figure, merged, timing_rows
from tasks import PROMPTS, TEXT, make_tasks

from sinkstudy.store.tables import read_tables, write_table

HERE = Path(__file__).parent
ENVIRONMENTS = ("sinkstudy", "kvpress")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--only", choices=["quality", "timing"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=ENVIRONMENTS)
    parser.add_argument("--contexts", type=int, default=2, help="texts of each length that are continued")
    parser.add_argument("--rounds", type=int, default=3, help="of timing, at each length")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="for the environment and the plans")
    parser.add_argument("--out", type=Path, default=HERE / "peers.csv")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pythons = {"sinkstudy": sys.executable, "kvpress": environment(given.work.absolute() / "venv")}
    tasks = write_tasks(given)
    for what in [given.only] if given.only else ["quality", "timing"]:
        # The environments run one after the other, because a timing must have the machine to itself.
        rows = pd.concat([measured(pythons[name], name, what, tasks, given) for name in given.environments])
        made = timing_rows(rows) if what == "timing" else rows
        table = merged(read_tables([given.out] if given.out.exists() else []), made)
        check_yardstick(table)
        write_table(table, given.out)
        figure(table).savefig(given.out.with_suffix(".png"), dpi=150)
    print(table.drop(columns="note").to_string(index=False))


def environment(folder: Path) -> str:
    """The Python of the peers' environment, made anew where requirements.txt has changed."""
    python, made, wanted = folder / "bin/python", folder / "made", (HERE / "requirements.txt").read_text("utf-8")
    if not made.exists() or made.read_text("utf-8") != wanted:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
        made.write_text(wanted, "utf-8")
    return str(python)


def write_tasks(given: argparse.Namespace) -> Path:
    """The file that both processes read; made once for the same model, texts and lengths."""
    path, read = given.work / "tasks.json", b"".join(Path(name).read_bytes() for name in (PROMPTS, TEXT))
    settings = [given.folder, given.contexts, hashlib.sha256(read).hexdigest()]
    made = json.loads(path.read_text("utf-8")) if path.exists() else {"settings": None, "tasks": {}}
    if made["settings"] != settings or not set(map(str, given.lengths)) <= made["tasks"].keys():
        tasks = make_tasks(given.folder, given.lengths, given.contexts)
        (given.work / PATTERN).unlink(missing_ok=True)  # of other texts
        path.write_text(json.dumps(tasks | {"settings": settings}), "utf-8")
    return path


def measured(python: str, name: str, what: str, tasks: Path, given: argparse.Namespace) -> pd.DataFrame:
    """What worker.py finds in one environment."""
    out = given.work / f"{what}_{name}.csv"
    paths = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1"}
    command = [python, HERE / "worker.py", name, what, tasks, out, str(given.rounds), *map(str, given.lengths)]
    subprocess.run(command, check=True, env=paths)
    return pd.read_csv(out)


if __name__ == "__main__":
    main()
