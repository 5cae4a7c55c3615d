"""What the page knows of replacing heads: the cost of each, and the plans that chose some."""

import json
from pathlib import Path

import numpy as np

from sinkstudy.store.tables import read_tables


def read_costs(path: Path, layers: list[int], heads: int) -> dict[str, list[float | None]]:
    """By strategy, and window where it has one, the estimated cost of replacing each head (KL divergence, nats per
    token), by layer and head; None for a head that `path`, a table of head costs, does not have."""
    table = read_tables([path])
    every = [(layer, head) for layer in layers for head in range(heads)]
    table["name"] = table["strategy"] + table["window"].map("_{:.0f}".format, na_action="ignore").fillna("")
    costs = {name: part.set_index(["layer", "head"])["cost"].reindex(every) for name, part in table.groupby("name")}
    return {name: [None if np.isnan(cost) else float(cost) for cost in of.tolist()] for name, of in costs.items()}


def read_plan(path: Path, layers: list[int], heads: int) -> dict[str, object]:
    """A plan's file for the page: `policy`, its name; `strategy`; `cells`, the heads that it names as row * heads +
    head; `firstLayer`, the threshold of one that decides by the first layer's scores, or None."""
    plan = json.loads(path.read_text(encoding="utf-8"))
    chosen = plan.get("heads", {})
    cells = [row * heads + head for row, layer in enumerate(layers) for head in chosen.get(str(layer), [])]
    first_layer = plan.get("first_layer_threshold")
    return {"policy": path.stem, "strategy": plan["strategy"], "cells": cells, "firstLayer": first_layer}
