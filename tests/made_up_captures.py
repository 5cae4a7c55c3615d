"""Made-up captures for tests of what is drawn from captures."""

from pathlib import Path

import numpy as np

from sinkstudy.measures.captured import Capture
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


def capture_of(
    prompt: Prompt, key_mass: np.ndarray, tokens: list[str] | None = None, layers: tuple[int, ...] = (), **rest: object
) -> Capture:
    """A capture of a prompt from its masses (layer, head, query, key_class), and whatever else is given."""
    n = key_mass.shape[2]
    own = {
        "layers": np.array(layers or range(len(key_mass))),
        "token_ids": np.arange(n),
        "tokens": tokens or ["t"] * n,
        "sink_mass": key_mass[..., 0],
        "output_norm": np.ones(key_mass.shape[:2]),
    }
    return Capture(prompt.id, prompt.set, key_mass=key_mass, **(own | rest))


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
    prompts = [Prompt(name, "long" if one.shape[2] > 24 else "short", "text") for name, one in maps.items()]
    with write_capture(path, ATTRIBUTES | {"model": model}, ("first",), prompts) as writer:
        for prompt in prompts:
            attention = maps[prompt.id]
            n = attention.shape[2]
            words = [HOSTILE[i % len(HOSTILE)] for i in range(n)]
            for part in attention if n <= 64 else ():
                writer.add_map(prompt.id, part)
            norms, row_sum = attention[..., -1, 0] + 0.25, None if full_rows else attention.sum(-1)
            rest = {"value_drain": 2 * norms, "position_mass": received(attention), "row_sum": row_sum}
            writer.add(capture_of(prompt, attention[..., :1], words, output_norm=norms, **rest))


def long_capture(path: Path, mass: np.ndarray, positions: np.ndarray) -> None:
    """A capture of one prompt without maps, from its sink mass (layer, head, query, 1) and position mass."""
    prompt, words = Prompt("long", "long", "text"), [f" token{i}" for i in range(mass.shape[2])]
    with write_capture(path, ATTRIBUTES | {"model": "m"}, ("first",), [prompt]) as writer:
        writer.add(capture_of(prompt, mass, words, position_mass=positions))
