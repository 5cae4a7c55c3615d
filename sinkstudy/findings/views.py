"""Where the explorer shows what a verdict is about: its page with the state in the address."""

from urllib.parse import urlencode

from sinkstudy.findings.inputs import Tables
from sinkstudy.findings.rules import Verdict
from sinkstudy.findings.text import Markdown

_COLOURS = {
    "has_sinks": "excess",
    "first_layer": "score",
    "length": "score",
    "predictor": "score",
    "mechanism": "drain",
}
_PLANS = {"skippable": "skipping", "worth_replacing": "benchmark"}  # verdicts about a plan, and the table of its row


def view(t: Tables, model: str, question: str, verdict: Verdict) -> Markdown:
    """A link to the heads of a model as the verdict saw them; nothing where the explorer shows nothing of it."""
    colour = _plan(t, model, question, verdict) if question in _PLANS else _COLOURS.get(question)
    if colour is None:
        return Markdown("")
    state = {"model": model, "prompt": "all", "colour": colour}
    length = verdict.numbers.get("n_tokens", verdict.numbers.get("length"))
    if question in _COLOURS and length == length and length is not None:
        state["length"] = f"{length:.0f}"
    return Markdown(f" [See the heads](<explorer.html#{urlencode(state)}>)")


def _plan(t: Tables, model: str, question: str, verdict: Verdict) -> str | None:
    """The plan of the row that the verdict judged, which its KL and number of heads tell from the others."""
    rows = t.of(_PLANS[question], model=model)
    if rows.empty or "kl" not in verdict.numbers:
        return None
    judged = rows[(rows["kl"] == verdict.numbers["kl"]) & (rows["heads_replaced"] == verdict.numbers["heads_replaced"])]
    return f"plan:{judged['policy'].iloc[0]}"
