"""What a GGUF file says about itself, read whole and checked before anything is loaded from it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkstudy.errors import StudyError


@dataclass(frozen=True)
class GGUFFile:
    """The metadata of a file (arrays as lists) and its tensors by name, as the package `gguf` describes them, kept
    because reading a file's head takes seconds."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> str:
        return self.metadata["general.architecture"]

    def stated(self, key: str, default: Any = None) -> Any:
        """The value of `key` below the architecture's name, such as `context_length`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def quantization(self) -> str:
        """Tensor types with their counts, most frequent first: `Q4_1 x 210, F32 x 61, Q8_0 x 1`."""
        counts = Counter(sorted(tensor.tensor_type.name for tensor in self.tensors.values()))
        return ", ".join(f"{kind} x {n}" for kind, n in counts.most_common())

    def unfit(self, why: str) -> StudyError:
        """The refusal of a file that cannot be carried over; `why` goes on after its path."""
        return StudyError(f"{self.path}{why}; give the model's directory in Hugging Face format instead.")


def check_header(path: Path) -> None:
    """Raise StudyError where the first bytes of `path` are not those of a GGUF file; cheap for any size."""
    with path.open("rb") as stream:
        start = stream.read(8)
    if start[:4] != b"GGUF":
        raise StudyError(f"{path} is not a GGUF file: it does not begin with the letters GGUF; give another file.")
    if int.from_bytes(start[4:], "little") not in (2, 3):
        raise StudyError(f"{path} is GGUF of a version other than 2 and 3; convert the model again with llama.cpp.")


def read_gguf(path: Path) -> GGUFFile:
    """Read the metadata and the list of tensors of a file.

    Raises StudyError for a foreign, truncated or split file and for one that does not name its architecture.
    """
    from gguf import GGUFReader  # imported here: jobs that read converted models need not pay for it

    check_header(path)
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=0)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        if end > path.stat().st_size:
            raise ValueError(f"its last tensor ends at byte {end}, the file at {path.stat().st_size}")
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise StudyError(f"{path} is truncated or damaged ({str(error).splitlines()[0]}); fetch it again.") from error
    if metadata.get("split.count", 1) > 1:
        raise StudyError(
            f"{path} is one of {metadata['split.count']} parts of a split model; merge them with llama-gguf-split "
            "--merge and give the merged file."
        )
    if not metadata.get("general.architecture") or not tensors:
        raise StudyError(f"{path} names no architecture or holds no tensors; give a GGUF file of a language model.")
    return GGUFFile(path, metadata, tensors)
