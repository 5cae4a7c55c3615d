"""The plan: which heads of which layers are replaced, and by what. A small JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sinkstudy.attention.strategies import STRATEGIES
from sinkstudy.errors import StudyError


@dataclass(frozen=True)
class Plan:
    """What to replace.

    `heads`: layer index to head indices. `strategy`: a key of STRATEGIES. `max_tokens`: inputs of more tokens than
    this run unchanged (None: no limit). `first_layer_threshold`: instead of `heads`, decide at inference: heads
    whose sink score in the first layer, for this very input, reaches it are replaced in all later layers.
    `policy`: the name of what chose the heads, for tables.
    """

    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    strategy: str = "first_value"
    max_tokens: int | None = None
    first_layer_threshold: float | None = None
    policy: str = "by hand"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise StudyError(f"plan: strategy {self.strategy!r} is unknown; use one of {', '.join(STRATEGIES)}.")
        if self.heads and self.first_layer_threshold is not None:
            raise StudyError("plan: give either heads or first_layer_threshold, not both.")
        cleaned = {int(layer): sorted({int(h) for h in heads}) for layer, heads in self.heads.items() if len(heads)}
        object.__setattr__(self, "heads", dict(sorted(cleaned.items())))

    @property
    def is_empty(self) -> bool:
        return not self.heads and self.first_layer_threshold is None

    @property
    def replaced(self) -> int:
        """Number of heads the plan names (0 where they are decided at inference)."""
        return sum(len(heads) for heads in self.heads.values())

    def save(self, path: Path | str) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Plan":
        """Read a plan. Raises StudyError naming the file when it is not one."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except StudyError as error:
            raise StudyError(f"{path}: {error}") from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise StudyError(f"{path}: is not a plan ({error}); write one with Plan(...).save(path).") from None
