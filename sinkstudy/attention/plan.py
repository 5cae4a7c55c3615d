"""The plan: which heads of which layers are replaced, and by what. A small JSON file."""

import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.errors import StudyError


@dataclass(frozen=True)
class Plan:
    """What to replace.

    `heads`: layer index to head indices. `strategy`: a key of STRATEGIES. `min_tokens`, `max_tokens`: prompts of fewer
    or more tokens than these run unchanged (None: no limit). `first_layer_threshold`: instead of `heads`, decide at
    inference: heads whose sink score in the first layer, for this very input, reaches it are replaced in all later
    layers.
    `rest_weight`: layer to head to the weight of each other token relative to the first's, for `first_value_mean`
    (None: measured on the first pass over each prompt, which in assisted generation holds guessed tokens too).
    `sink_tokens`, `window`: what `sink_window` attends to. `windows`: layer to head to a window of its own; other heads
    have `window`. `policy`: the name of what chose the heads, for tables.

    Raises StudyError for an unknown strategy and for settings that contradict each other.
    """

    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    strategy: str = "first_value"
    min_tokens: int | None = None
    max_tokens: int | None = None
    first_layer_threshold: float | None = None
    rest_weight: Mapping[int, Mapping[int, float]] | None = None
    sink_tokens: int = 4
    window: int = 64
    windows: Mapping[int, Mapping[int, int]] | None = None
    policy: str = "by hand"

    def __post_init__(self) -> None:
        _check_types(self)
        if self.strategy not in STRATEGIES:
            raise StudyError(f"plan: strategy {self.strategy!r} is unknown; use one of {', '.join(STRATEGIES)}.")
        if self.heads and self.first_layer_threshold is not None:
            raise StudyError("plan: give either heads or first_layer_threshold, not both.")
        cleaned = {int(layer): sorted({int(h) for h in heads}) for layer, heads in self.heads.items() if len(heads)}
        object.__setattr__(self, "heads", dict(sorted(cleaned.items())))
        for name in ("min_tokens", "max_tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise StudyError(f"plan: {name} is {limit}; use 1 or more, or leave it out for no limit.")
        if None not in (self.min_tokens, self.max_tokens) and self.min_tokens > self.max_tokens:
            raise StudyError(
                f"plan: min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}, so it applies to no prompt; "
                "lower the first."
            )
        if self.first_layer_threshold is not None and not 0 <= self.first_layer_threshold <= 1:
            raise StudyError(f"plan: first_layer_threshold is {self.first_layer_threshold}; use a score from 0 to 1.")
        if self.sink_tokens < 1 or self.window < 1:
            raise StudyError("plan: sink_tokens and window must be at least 1.")
        if self.windows is not None:
            if not STRATEGIES[self.strategy].forgets_tokens:
                raise StudyError(f"plan: strategy {self.strategy!r} has no window; leave out windows.")
            windows = {int(n): dict(sorted((int(h), int(w)) for h, w in of.items())) for n, of in self.windows.items()}
            object.__setattr__(self, "windows", dict(sorted(windows.items())))
        if self.rest_weight is not None:
            if self.first_layer_threshold is not None:
                raise StudyError(
                    "plan: rest_weight names heads, which first_layer_threshold leaves to the input; leave out one."
                )
            weights = {int(n): {int(h): float(w) for h, w in of.items()} for n, of in self.rest_weight.items()}
            object.__setattr__(self, "rest_weight", weights)
            for layer, heads in self.heads.items():
                for head in heads:
                    if not 0 <= weights.get(layer, {}).get(head, -1) < math.inf:
                        raise StudyError(
                            f"plan: rest_weight must give layer {layer}, head {head} a weight of 0 or more; leave "
                            "rest_weight out to have it measured on each prompt."
                        )

    @property
    def is_empty(self) -> bool:
        return not self.heads and self.first_layer_threshold is None

    @property
    def replaced(self) -> int:
        """Number of heads the plan names (0 where they are decided at inference)."""
        return sum(len(heads) for heads in self.heads.values())

    def window_of(self, layer: int, head: int) -> int:
        return (self.windows or {}).get(layer, {}).get(head, self.window)

    def by_window(self, layer: int, heads: Sequence[int]) -> dict[int, tuple[int, ...]]:
        """These heads of `layer`, those of one window together."""
        widths = sorted({self.window_of(layer, head) for head in heads})
        return {width: tuple(h for h in heads if self.window_of(layer, h) == width) for width in widths}

    def covers(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens runs under the plan."""
        return (self.min_tokens or 0) <= tokens and (self.max_tokens is None or tokens <= self.max_tokens)

    def save(self, path: Path | str) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Plan":
        """Read a plan. Raises StudyError naming the file when it is not one."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats))
        except StudyError as error:
            raise StudyError(f"{path}: {error}") from None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StudyError(f"{path}: is not a plan ({error}); write one with Plan(...).save(path).") from None


def _check_types(plan: Plan) -> None:
    """A plan may come from a file that anybody wrote, whose keys are text."""
    fits = isinstance(plan.heads, Mapping) and all(
        str(layer).removeprefix("-").isdecimal() and _is_list(named) and all(map(_is_whole, named))
        for layer, named in plan.heads.items()
    )
    if not fits:
        raise StudyError("plan: heads must give layers lists of heads, such as {1: [0, 2]}.")
    for name in ("min_tokens", "max_tokens", "sink_tokens", "window"):
        value = getattr(plan, name)
        if not _is_whole(value) and not (value is None and name in ("min_tokens", "max_tokens")):
            raise StudyError(f"plan: {name} is {value!r}, but must be a whole number.")
    widths = plan.windows if plan.windows is not None else {}
    if not isinstance(widths, Mapping) or not all(map(_is_windows, widths.values())):
        raise StudyError("plan: windows must give heads of layers whole numbers from 1, such as {1: {0: 256}}.")
    for name in ("strategy", "policy"):
        if not isinstance(getattr(plan, name), str):
            raise StudyError(f"plan: {name} is {getattr(plan, name)!r}, but must be a name.")


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | Mapping)


def _is_windows(of_heads: object) -> bool:
    return isinstance(of_heads, Mapping) and all(_is_whole(width) and width >= 1 for width in of_heads.values())


def _is_whole(value: object) -> bool:
    """Whether an index can be made of `value`: one of Python, NumPy or PyTorch."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of a repeated key JSON keeps the last value in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
