"""The first screen: three numbers with their intervals and what each is to be read beside, and the plan to use."""

import math
from collections.abc import Mapping

import pandas as pd

from sinkstudy.findings.inputs import MIN_TOKENS, Tables
from sinkstudy.findings.predictor_rules import NAMES
from sinkstudy.findings.replacing import faster_at_a_price, surely_faster
from sinkstudy.findings.rules import Verdict
from sinkstudy.findings.text import Markdown, note, percent, show
from sinkstudy.stats.recommendation import over_all_lengths, recommended

Row = dict[str, object]


def three_numbers(t: Tables, model: str, verdicts: Mapping[str, Verdict]) -> list[Row]:
    """How many heads are sinks, how many later layers follow a first-layer sink, and how well the best predictor tells
    later sinks: rows of `what`, `value`, `interval` and `beside`, as they are printed."""
    return [_share(t, model), _following(verdicts["first_layer"]), _prediction(t, model)]


def best_predictor(t: Tables, model: str) -> pd.Series | None:
    """The row of the predictor to use, over all lengths; None where none tells more than the base rate."""
    rows = over_all_lengths(t.of("predictors", model=model, measure="score", threshold=t.threshold))
    name = recommended(rows) if len(rows) and rows["gain_low"].notna().any() else None
    return None if name is None else rows.loc[name]


def best_plan(t: Tables, model: str) -> Row | None:
    """The fastest row of the benchmark that is surely worth having, with the `plan` file it comes from."""
    return _with_file(surely_faster(t.of("benchmark", model=model)), model)


def priced_plan(t: Tables, model: str) -> Row | None:
    """The same of policy `budget`, whose plan need not be harmless."""
    return _with_file(faster_at_a_price(t.of("benchmark", model=model)), model)


def _with_file(row: pd.Series | None, model: str) -> Row | None:
    return None if row is None else row.to_dict() | {"plan": f"results/plans/{model}/{row['policy']}.json"}


def _share(t: Tables, model: str) -> Row:
    rows = t.rows("curves", model=model, set="all", threshold=t.threshold)
    row = min(rows, key=lambda row: (abs(row["n_tokens"] - MIN_TOKENS), row["n_tokens"]))
    return {
        "what": f"Heads that are sinks (score of at least {t.threshold:g} over {row['n_tokens']} tokens)",
        "value": percent(row["sink_fraction"]),
        "interval": _interval(row["sink_fraction_low"], row["sink_fraction_high"], True),
        "beside": f"mean excess over uniform attention {show(row['mean_excess'], '.2f')} "
        f"({_interval(row['mean_excess_low'], row['mean_excess_high'], False, '.2f')})",
        "note": note(t.file_of("curves", model), f"set=all, threshold={t.threshold:g}, n_tokens={row['n_tokens']}"),
    }


def _following(verdict: Verdict) -> Row:
    numbers, what = verdict.numbers, "Later layers that follow a first-layer sink"
    source = note(verdict.file, verdict.rows) if verdict.file else Markdown("")
    if "p_later_given_first" not in numbers:
        return {"what": what, "value": "undefined", "interval": "–", "beside": "no first-layer sinks", "note": source}
    return {
        "what": f"{what} (at {numbers['n_tokens']:.0f} tokens)",
        "value": percent(numbers["p_later_given_first"]),
        "interval": _interval(numbers["ci_low"], numbers["ci_high"], True),
        "beside": f"base rate {percent(numbers['p_later'])}, p = {numbers['p_value']:.2g}",
        "note": source,
    }


def _prediction(t: Tables, model: str) -> Row:
    row = best_predictor(t, model)
    what = "Area under the ROC curve of the best predictor on unseen prompts"
    if row is None:
        return {"what": what, "value": "undefined", "interval": "–", "beside": "none is better than its base rate"} | {
            "note": Markdown("")
        }
    rows = over_all_lengths(t.of("predictors", model=model, measure="score", threshold=t.threshold))
    return {
        "what": f"Area under the ROC curve of {NAMES[row.name]}",
        "value": show(row["auc"]),
        "interval": _interval(row["auc_low"], row["auc_high"], False),
        "beside": f"the same head of the first layer {show(rows.loc['first_layer', 'auc'])}; chance 0.5",
        "note": note(t.file_of("predictors", model), f"measure=score, threshold={t.threshold:g}, n_tokens empty"),
    }


def _interval(low: float, high: float, shares: bool, form: str = ".3f") -> str:
    if math.isnan(low):
        return "undefined"
    return " to ".join(percent(end) if shares else show(end, form) for end in (low, high))
