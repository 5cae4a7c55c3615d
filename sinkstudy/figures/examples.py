"""Choosing the heads whose attention maps are worth looking at."""

from pathlib import Path

from sinkstudy.figures.maps import ExampleMap
from sinkstudy.store import Expected, open_capture
from sinkstudy.store.tables import LongTable

_READABLE_TOKENS = 24


def example_maps(
    captures: list[Path], scores: LongTable, expected: Expected | None = None
) -> tuple[str, list[str], list[ExampleMap]] | None:
    """The strongest sink, the weakest head and the one nearest half, all on one prompt: id, tokens, examples.

    The prompt is the longest whose tokens can still be read as labels, or the shortest with stored maps.
    None where no capture holds maps, since all prompts are longer than `capture.maps_max_tokens`.
    """
    stored: dict[str, tuple[Path, int]] = {}  # file and tokens
    for path in captures:
        with open_capture(path, expected) as file:
            shapes = {prompt: file.shapes(prompt) for prompt in file.prompts}
            stored |= {name: (path, one["attention"][-1]) for name, one in shapes.items() if "attention" in one}
    if not stored:
        return None
    lengths = {name: n for name, (_, n) in sorted(stored.items())}
    readable = [name for name, n in lengths.items() if n <= _READABLE_TOKENS]
    prompt = max(readable, key=lengths.get) if readable else min(lengths, key=lengths.get)
    heads = scores.only(lambda rows: rows["prompt"] == prompt)
    path, _ = stored[prompt]
    chosen = {
        "highest score": heads["sink_score"].idxmax(),
        "nearest one half": (heads["sink_score"] - 0.5).abs().idxmin(),
        "lowest score": heads["sink_score"].idxmin(),
    }
    examples = []
    with open_capture(path) as file:
        rows = {layer: row for row, layer in enumerate(file.layers.tolist())}
        for kind, index in chosen.items():
            layer, head = int(heads.at[index, "layer"]), int(heads.at[index, "head"])
            attention = file.maps(prompt, rows[layer])[head]
            kind += ": a sink" if heads.at[index, "is_sink"] else ": no sink"
            examples.append(ExampleMap(kind, layer, head, heads.at[index, "sink_score"], attention.astype(float)))
        return prompt, file.capture(prompt).tokens, examples
