"""From captures to what statistics need of them: per prompt a few numbers for each head and token.

Shards of captures are reduced by jobs of their own, and every statistic is made of what all of them left. Nothing here
depends on the seed, on how often something is drawn, or on other prompts.

Datasets with a row per prompt, of axes (layer, head) where nothing else is said: `prompt`, `set`, `n_tokens`,
`text_tokens`, `first_token`; at the prompt's whole length `sink_score`, `tail_score`, `strongest_position`,
`position_score`, `output_norm`, `value_drain`, and (layer,) `activation`, `activation_channel`, `channel_value`;
`p_value` (threshold,) of its correlation. At `n` tokens, undefined where the prompt is shorter, `shares/{n}`
(definition, threshold), `scores/{n}`, and `sinks/{n}`, the bits of (threshold, layer, head) whether a head is a sink
(`sinks/whole`: at all tokens). Of received attention `has_positions`, `strongest`, `strongest_mass`,
`first_mass`.

With a row per token: `mean_score` of all heads over the prompt up to there, `counts` (threshold, 3) of sinks, see
`sinkstudy.measures.scores.sink_counts`; `token`, and what it receives: `mean_received`, `sink_heads`,
`strongest_heads`.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np

from sinkstudy.measures.captured import LAYOUT, Capture
from sinkstudy.measures.received import Received
from sinkstudy.stats.definitions import shares
from sinkstudy.stats.positions import received_of
from sinkstudy.stats.prefixes import Prefixes
from sinkstudy.stats.reduced import Reduced, Rows, fill, write_reduced
from sinkstudy.stats.relabelling import exact_p_values
from sinkstudy.stats.scores import in_batches, scored, strongest_position, tail_score

BY_TOKEN = ("mean_score", "counts", "token", "mean_received", "sink_heads", "strongest_heads")


@dataclass(frozen=True)
class Needs:
    """What statistics will ask for: sinks under every definition at each of `thresholds` and `lengths`, and scores of
    heads at the lengths `scored`."""

    thresholds: Sequence[float]
    lengths: Sequence[int]
    scored: Sequence[int] = ()


def reduced(captures: Iterable[Capture], needs: Needs) -> Reduced:
    """What captures leave, in memory."""
    file = h5py.File(io.BytesIO(), "w")
    fill(file, _batches(captures, needs), BY_TOKEN, {"thresholds": list(needs.thresholds)})
    return Reduced([file])


def reduce(path: Path, captures: Iterable[Capture], needs: Needs, provenance: Mapping[str, str]) -> None:
    """Write what captures leave; files of another `provenance` are not read together with this one."""
    write_reduced(path, _batches(captures, needs), BY_TOKEN, {"thresholds": list(needs.thresholds), **provenance})


def _batches(captures: Iterable[Capture], needs: Needs) -> Iterator[Rows]:
    """The rows of a bounded number of prompts at a time."""
    for batch in in_batches(captures):
        found: list[dict[str, np.ndarray]] = [{}] * len(batch)
        for places, prefixes in scored(batch):
            rows = _of_length(prefixes, needs)
            for at, place in enumerate(places):
                found[place] = {name: values[at] for name, values in rows.items()}
        arrays = {
            name: (np.concatenate if name in BY_TOKEN else np.stack)([one[name] for one in found]) for name in found[0]
        }
        yield arrays | {
            "prompt": [one.prompt for one in batch],
            "set": [one.set for one in batch],
            "token": [token for one in batch for token in one.tokens],
        }


def _of_length(prefixes: Prefixes, needs: Needs) -> dict[str, np.ndarray]:
    """Of prompts of one length, each array with the axis prompt before its own."""
    n, members = prefixes.n_tokens, prefixes.members
    whole, levels = prefixes.at(n), np.array(needs.thresholds)[:, None, None]
    decisions = whole[:, None] >= levels  # (prompt, threshold, layer, head)
    position, position_score = strongest_position(prefixes, n)
    found = {
        "n_tokens": np.full(len(members), n, np.int32),
        "text_tokens": np.array([one.text_tokens or n for one in members], np.int32),
        "first_token": np.array([one.token_ids[0] for one in members], np.int32),
        "layers": np.stack([one.layers for one in members]).astype(np.int32),
        "sink_score": whole,
        "tail_score": tail_score(prefixes, n),
        "strongest_position": position.astype(float),
        "position_score": position_score,
        "output_norm": np.stack([one.output_norm for one in members]),
        "mean_score": prefixes.mean_scores(),
        "counts": np.stack([prefixes.sink_counts(threshold) for threshold in needs.thresholds], axis=2),
        "p_value": exact_p_values(decisions),
        "sinks/whole": _bits(decisions),
    }
    for k in needs.lengths:
        at = prefixes.at(k)[:, None] >= levels if k <= n else np.zeros_like(decisions)
        found |= {f"sinks/{k}": _bits(at), f"shares/{k}": shares(prefixes, k, needs.thresholds)}
    for k in needs.scored:
        found[f"scores/{k}"] = prefixes.at(k) if k <= n else np.full(whole.shape, np.nan)
    return found | _measured(members, whole.shape[1:]) | _positions(members, whole.shape[1:])


def _bits(decisions: np.ndarray) -> np.ndarray:
    return np.packbits(decisions.reshape(len(decisions), -1), axis=1)


def _measured(members: list[Capture], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """NaN where a capture, as another program's may, holds nothing of it."""
    found = {}
    for name in ("activation", "activation_channel", "channel_value", "value_drain"):
        unknown = np.full(shape if name == "value_drain" else shape[:1], np.nan, np.float32)
        values = [getattr(one, name) for one in members]
        if "channel" in name:  # the largest of several
            values = [value if value is None else value[:, 0].astype(float) for value in values]
        found[name] = np.stack([unknown if value is None else value for value in values])
    return found


def _positions(members: list[Capture], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What positions receive, see `sinkstudy.measures.received.Received`; 0 where that was not captured."""
    received = [received_of(one) for one in members]
    found = {"has_positions": np.array([one is not None for one in received])}
    for name in (field.name for field in fields(Received)):
        kind, axes = LAYOUT[name]
        unknown = np.zeros(members[0].n_tokens if axes == ("key",) else shape)
        rows = [unknown if one is None else getattr(one, name) for one in received]
        found[name] = np.stack(rows).astype(kind)
    return found
