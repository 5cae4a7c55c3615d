"""What a beginning-of-sequence token changes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages
from sinkstudy.figures.style import (
    COLOURS,
    MARKERS,
    NULL_STYLE,
    PAGE,
    band,
    headline,
    length_axis,
    light_grid,
    new_figure,
    series_style,
    styled,
)
from sinkstudy.stats.scores import POSITIONS

_HATCHES = ("", "////", "....", "xxxx")


@styled
def bos_figure(table: pd.DataFrame) -> Figure:
    """Mean excess score over length under each setting of bos, and the strongest of the first positions."""
    figure, (left, right) = new_figure(PAGE, 3.0, columns=2)
    arms = list(dict.fromkeys(table["arm"]))
    for i, arm in enumerate(arms):
        rows = table[table["arm"] == arm]
        left.plot(rows["n_tokens"], rows["mean_excess"], marker=MARKERS[i], markersize=3, **series_style(i), label=arm)
        band(left, rows["n_tokens"], rows["mean_excess_low"], rows["mean_excess_high"], COLOURS[i])
    length_axis(left, int(table["n_tokens"].max()))
    left.axhline(0, **NULL_STYLE)
    left.set(ylabel="mean excess score", title="sinks at the first token")
    left.legend(title="bos", title_fontsize=7)
    light_grid(left)
    at = table["n_tokens"][table["strongest_0"].notna()].max()
    rows = table[table["n_tokens"] == at].set_index("arm").reindex(arms)
    bottom = np.zeros(len(arms))
    for position in range(POSITIONS):
        share = 100 * rows[f"strongest_{position}"].to_numpy(float)
        style = {"color": COLOURS[position], "hatch": _HATCHES[position], "linewidth": 0}
        right.bar(range(len(arms)), np.nan_to_num(share), 0.6, bottom, **style, label=f"position {position}")
        bottom += np.nan_to_num(share)
    right.set_xticks(range(len(arms)), arms)
    right.set(ylabel="heads (%)", ylim=(0, 103), xlabel="bos")
    right.set_title("strongest of the first four" if np.isnan(at) else f"strongest of the first four, {at} tokens")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4)
    prompts = f"n = {table['prompts'].max()} prompts, {table['prompts'].min()} at the greatest length"
    details = f"{table['model'].iloc[0]}, {prompts}, the same under each setting; bands: 95% over prompts"
    headline(figure, messages.bos(table), details)
    return figure
