"""What a beginning-of-sequence token changes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinkstudy.figures import messages, style
from sinkstudy.stats.scores import POSITIONS


@style.styled
def bos_figure(table: pd.DataFrame) -> Figure:
    """Mean excess score over length under each setting of bos, and the strongest of the first positions."""
    figure, (left, right) = style.new_figure(style.PAGE, 3.0, columns=2)
    arms = table["arm"].unique()
    for i, arm in enumerate(arms):
        marked = {"marker": style.MARKERS[i], "markersize": 3}
        style.length_curve(left, i, table[table["arm"] == arm], "mean_excess", **marked, label=arm)
    style.length_axis(left, table["n_tokens"].max())
    left.axhline(0, **style.NULL_STYLE)
    left.set(ylabel="mean excess score", title="sinks at the first token")
    left.legend(title="bos", title_fontsize=7)
    at = table["n_tokens"][table["strongest_0"].notna()].max()
    parts = {f"strongest_{position}": f"position {position}" for position in range(POSITIONS)}
    shares = table[table["n_tokens"] == at].set_index("arm").reindex(arms)[list(parts)].rename(columns=parts)
    style.stacked_bars(right, range(len(arms)), shares, 0.6)
    right.set_xticks(range(len(arms)), arms)
    right.set(ylabel="heads (%)", ylim=(0, 103), xlabel="bos")
    right.set_title("strongest of the first four" if np.isnan(at) else f"strongest of the first four, {at} tokens")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=4)
    prompts = f"n = {table['prompts'].max()} prompts, {table['prompts'].min()} at the greatest length"
    details = f"{table['model'].iloc[0]}, {prompts}, the same under each setting; bands: 95% over prompts"
    return style.headline(figure, messages.bos(table), details)
