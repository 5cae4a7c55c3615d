"""Made-up captures for tests of what is drawn from captures."""

from pathlib import Path

import numpy as np

from sinkstudy.prompts import Prompt
from sinkstudy.store import write_capture

ATTRIBUTES = {"source": "models/made-up", "revision": "none", "dtype": "float32", "bos": "auto"}
HOSTILE = [
    "</script><script>alert('token')</script>",
    "<img src=x onerror=alert(1)>",
    "\u2028",
    "<!--",
    "${alert(2)}",
    "<b>bold</b>",
    "\x00\x1b",
    "&lt;",
    " the",
    "\n",
]


def softmax_maps(rng: np.random.Generator, layers: int, heads: int, n: int) -> np.ndarray:
    """Causal maps (layer, head, query, key) of random logits; the first token draws some heads strongly."""
    logits = rng.normal(size=(layers, heads, n, n))
    logits[..., 0] += rng.choice([0, 0, 3, 8], size=(layers, heads, 1))
    logits[..., ~np.tril(np.ones((n, n), bool))] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def received(attention: np.ndarray) -> np.ndarray:
    """What each position receives, the mean over the queries after it: (..., key), NaN for the last."""
    n = attention.shape[-1]
    means = [attention[..., key + 1 :, key].mean(-1, dtype=float) for key in range(n - 1)]
    return np.stack([*means, np.full(attention.shape[:-2], np.nan)], axis=-1)


def made_up_capture(path: Path, model: str, maps: dict[str, np.ndarray], full_rows: bool = True) -> None:
    """A capture of these maps by prompt, whole ones only of up to 64 tokens."""
    with write_capture(path, ATTRIBUTES | {"model": model}, ("first",)) as writer:
        for name, attention in maps.items():
            n = attention.shape[2]
            words = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
            writer.begin(Prompt(name, "long" if n > 24 else "short", "text"), list(range(n)), words)
            for part in attention if n <= 64 else ():
                writer.add_map(name, part)
            layers, norms = list(range(len(attention))), attention[..., -1, 0] + 0.25
            row_sum = {} if full_rows else {"row_sum": attention.sum(-1)}
            of_heads = {"output_norm": norms, "value_drain": 2 * norms, "position_mass": received(attention)}
            writer.finish(name, layers, 0.0, key_mass=attention[..., :1], **of_heads, **row_sum)


def long_capture(path: Path, mass: np.ndarray, positions: np.ndarray) -> None:
    """A capture of one prompt without maps, from its sink mass (layer, head, query, 1) and position mass."""
    n = mass.shape[2]
    with write_capture(path, ATTRIBUTES | {"model": "m"}, ("first",)) as writer:
        writer.begin(Prompt("long", "long", "text"), [0] * n, [f" token{i}" for i in range(n)])
        arrays = {"key_mass": mass, "output_norm": np.ones(mass.shape[:2]), "position_mass": positions}
        writer.finish("long", list(range(len(mass))), 0.0, **arrays)
