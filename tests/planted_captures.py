"""Synthetic captures with a planted truth: which heads are sinks, and how often they are."""

import numpy as np

from sinkstudy.measures.captured import Capture


def capture_of(mass: np.ndarray, prompt: str = "p", set_name: str = "s") -> Capture:
    """A capture of one prompt from the mass on its first token, (layer, head, query)."""
    return Capture(
        prompt=prompt,
        set=set_name,
        token_ids=np.arange(mass.shape[-1]),
        tokens=["t"] * mass.shape[-1],
        layers=np.arange(len(mass)),
        sink_mass=mass.astype(np.float32),
        key_mass=np.repeat(mass[..., None], 6, axis=-1).astype(np.float32),
        output_norm=np.zeros(mass.shape[:2]),
        row_sum=None,
    )


def planted_captures(is_sink: np.ndarray, n: int, sets: list[str] | None = None) -> list[Capture]:
    """Captures of prompts of `n` tokens in which exactly the heads of `is_sink` (prompt, layer, head) are sinks.

    A sink puts 0.97 of its attention on the first token, any other head what uniform attention puts there; both
    vary a little from query to query.
    """
    rng = np.random.default_rng(7)
    uniform = 1 / np.arange(1, n + 1)
    captures = []
    for i, planted in enumerate(is_sink):
        mass = np.where(planted[..., None], 0.97, uniform) * rng.uniform(0.98, 1.02, (*planted.shape, n))
        mass[..., 0] = 1
        captures.append(capture_of(mass, f"p{i}", sets[i] if sets else "planted"))
    return captures
