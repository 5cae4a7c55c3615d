"""Which captures the study's jobs are to find, and what is said where there are others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sinkstudy.errors import DamagedFileError
from sinkstudy.prompts import combined_digest
from sinkstudy.store import open_capture


@dataclass(frozen=True)
class Expected:
    """`attributes`: what the files must say of themselves. `shards`: by the name of a file without its ending, the
    digest of its prompts (`sinkstudy.prompts.digest`)."""

    attributes: Mapping[str, str]
    shards: Mapping[str, str]

    def checked(self, paths: Iterable[Path | str]) -> list[Path]:
        """The same paths, of which all are as expected; DamagedFileError naming the first that is not."""
        paths = [Path(path) for path in paths]
        for path in paths:
            self._check(path)
        return paths

    def _check(self, path: Path) -> None:
        with open_capture(path) as file:
            for name, expected in self.attributes.items():
                found = file.attributes.get(name)
                if found != str(expected):
                    raise DamagedFileError(path, f"its {name} is {found!r}, where the study has {str(expected)!r}")
            if combined_digest(file.prompts.items()) != self.shards.get(path.stem):
                raise DamagedFileError(path, f"its prompts are not those of the study's shard {path.stem}")
