"""How large the explorer's page is, and how soon a browser shows it: made-up captures of a 32 x 32-head model.

    python benchmarks/explorer.py                     # writes benchmarks/explorer.csv

The masses are random, so nothing compresses better than it would in earnest. `first_paint_s` and `ready_s` (everything
drawn and answering) are medians over fresh browsers that open the file from disk; they need Playwright and Chromium.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from sinkstudy.explorer import write_page
from sinkstudy.measures.captured import Capture
from sinkstudy.prompts import Prompt
from sinkstudy.store import write_capture

ATTRIBUTES = {"source": "made up", "revision": "none", "dtype": "float32", "bos": "auto"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--maps", action="store_true", help="also with whole maps stored: 3 GB of captures")
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages of real studies to measure as well")
    args = parser.parse_args()
    rows = [measured(page, {"page": page.name}, args.rounds) for page in args.pages]
    for maps in (False, True) if args.maps else (False,):
        with tempfile.TemporaryDirectory() as folder:
            capture, page = Path(folder) / "made_up.h5", Path(folder) / "explorer.html"
            made_up_capture(capture, args, maps)
            start = time.perf_counter()
            write_page({"made-up": [capture]}, [0.3, 0.8, 0.9], 0.9, page)
            about = {
                "page": f"{args.layers} x {args.heads} heads, {args.prompts} prompts of {args.tokens} tokens"
                + (", with whole maps" if maps else ""),
                "write_s": round(time.perf_counter() - start, 1),
            }
            rows.append(measured(page, about, args.rounds))
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, lineterminator="\n")
    print(table.to_string(index=False))


def made_up_capture(path: Path, args: argparse.Namespace, maps: bool) -> None:
    """Random causal maps; without `maps` only their first columns are stored."""
    rng = np.random.default_rng(0)
    n = args.tokens
    later = np.triu(np.ones((n, n), bool), 1)
    prompts = [Prompt(f"prompt_{i:02d}", "made-up", "text") for i in range(args.prompts)]
    with write_capture(path, ATTRIBUTES | {"model": "made-up"}, ("first",), prompts) as writer:
        for prompt in prompts:
            mass = rng.random((args.layers, args.heads, n, 1), dtype=np.float32)
            for layer in range(args.layers) if maps else ():
                attention = rng.random((args.heads, n, n), dtype=np.float32) ** 4
                attention[:, later] = 0
                attention /= attention.sum(-1, keepdims=True)
                mass[layer] = attention[..., :1]
                writer.add_map(prompt.id, attention)
            norms = np.ones((args.layers, args.heads))
            received = rng.random((args.layers, args.heads, n)) ** 8  # Most tokens receive next to nothing.
            capture = Capture(
                prompt=prompt.id,
                set=prompt.set,
                layers=np.arange(args.layers),
                token_ids=np.arange(n),
                tokens=[f" token{j}" for j in range(n)],
                sink_mass=mass[..., 0],
                key_mass=mass,
                output_norm=norms,
                value_drain=norms,
                position_mass=received,
            )
            writer.add(capture)


def measured(page: Path, about: dict[str, object], rounds: int) -> dict[str, object]:
    """Size and times of one page; the first round is a warm-up."""
    paints, ready = [], []
    with sync_playwright() as driver:
        for _ in range(rounds + 1):
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = browser.new_page()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_function("document.body.dataset.shown")
            ready.append(tab.evaluate("performance.now()") / 1e3)
            paints.append(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1e3)
            browser.close()
    size = page.stat().st_size / 1e6
    times = {"first_paint_s": statistics.median(paints[1:]), "ready_s": statistics.median(ready[1:])}
    worst = {"first_paint_max_s": max(paints[1:])}
    return about | {"size_mb": round(size, 2)} | {name: round(value, 2) for name, value in (times | worst).items()}


if __name__ == "__main__":
    main()
