"""Choosing the heads whose attention maps are worth looking at."""

from pathlib import Path

from sinkstudy.errors import StudyError
from sinkstudy.figures.maps import ExampleMap
from sinkstudy.store import open_capture, read_maps, read_tokens
from sinkstudy.store.tables import LongTable

_READABLE_TOKENS = 40


def example_maps(captures: list[Path], scores: LongTable) -> tuple[str, list[str], list[ExampleMap]]:
    """The strongest sink, the weakest head and the one nearest half, all on one prompt: id, tokens, examples.

    The prompt is the longest whose tokens can still be read as labels, or the shortest with stored maps.
    Raises StudyError when no capture holds maps.
    """
    stored: dict[str, tuple[Path, int]] = {}  # file and tokens
    for path in captures:
        with open_capture(path) as file:
            groups = ((name, item) for name, item in file.items() if "attention" in getattr(item, "keys", dict)())
            stored |= {name: (path, len(item["token_ids"])) for name, item in groups}
    if not stored:
        raise StudyError("no capture holds attention maps; raise capture.maps_max_tokens above the shortest prompt.")
    lengths = {name: n for name, (_, n) in sorted(stored.items())}
    readable = [name for name, n in lengths.items() if n <= _READABLE_TOKENS]
    prompt = max(readable, key=lengths.get) if readable else min(lengths, key=lengths.get)
    heads = scores.only(lambda rows: rows["prompt"] == prompt)
    path, _ = stored[prompt]
    with open_capture(path) as file:
        rows = {int(layer): row for row, layer in enumerate(file.attrs["layers"])}
    chosen = {
        "highest score": heads["sink_score"].idxmax(),
        "nearest one half": (heads["sink_score"] - 0.5).abs().idxmin(),
        "lowest score": heads["sink_score"].idxmin(),
    }
    examples = []
    for kind, index in chosen.items():
        layer, head = int(heads.at[index, "layer"]), int(heads.at[index, "head"])
        attention = read_maps(path, prompt, rows[layer])[head]
        kind += ": a sink" if heads.at[index, "is_sink"] else ": no sink"
        examples.append(ExampleMap(kind, layer, head, heads.at[index, "sink_score"], attention.astype(float)))
    return prompt, read_tokens(path, prompt), examples
