"""Recomputing captures by the model's own eager attention, which captures never use."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from sinkstudy.errors import DamagedFileError, StudyError
from sinkstudy.models.implementation import attention_implementation
from sinkstudy.models.loading import LoadedModel
from sinkstudy.prompts import spread_over_lengths
from sinkstudy.store import open_capture, read_captures

# A head's captured and recomputed score may differ by this much, because earlier layers magnify the rounding of
# attention's inputs. Captures of other weights or prompts differ by 0.1 and more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def verify(name: str, loaded: LoadedModel, captures: list[Path], count: int) -> pd.DataFrame:
    """Largest differences between stored masses and eager attention, for `count` prompts spread over the lengths.

    All of `captures`, files, is read, so that a damaged one shows; what is held of them are the prompts compared.
    `max_mass_difference` is over layers, heads and queries; `max_score_difference` over layers and heads, of the
    mean over queries (in half precision single rows differ by rounding, their mean should not). Where a capture keeps
    lengths there is no mass of single queries to compare.

    Raises StudyError where captures are of other weights than `loaded`, or have a `max_score_difference` above
    TOLERANCE.
    """
    for path in map(Path, captures):
        with open_capture(path) as file:
            if (found := file.attributes.get("revision")) != loaded.resolved:
                raise DamagedFileError(path, f"its revision is {found!r}, that of the model is {loaded.resolved!r}")
    token_ids = {capture.prompt: capture.token_ids for capture in read_captures(captures)}
    chosen = spread_over_lengths(token_ids, count)
    sample = {capture.prompt: capture for capture in read_captures(captures) if capture.prompt in chosen}
    rows = []
    embeddings = loaded.model.get_input_embeddings().num_embeddings
    for capture in tqdm(map(sample.get, chosen), desc=f"verify {name}", total=len(chosen), unit="prompt"):
        if not ((capture.token_ids >= 0) & (capture.token_ids < embeddings)).all():
            raise StudyError(
                f"model {name!r}, prompt {capture.prompt!r}: it was captured with tokens that the model does not have; "
                f"delete {Path(captures[0]).parent} and run again."
            )
        eager, row_sum = eager_masses(loaded, capture.token_ids)
        tolerance = TOLERANCE[loaded.model.dtype]
        # Granite's eager attention applies its learned sinks after it has made the weights it returns. Their rows sum
        # to 1, so they are compared with shares of the captured rows.
        shares = np.allclose(row_sum, 1, atol=tolerance)
        if (kept := capture.kept) is None:
            difference = eager - capture.sink_mass / (capture.row_sum if shares and capture.row_sum is not None else 1)
            worst, worst_mass = np.abs(difference.mean(-1)).max(), np.abs(difference).max()
        else:
            means = kept.mean_sink_share if shares and kept.mean_sink_share is not None else kept.mean_sink_mass
            worst, worst_mass = np.abs(eager.mean(-1) - means[..., -1]).max(), np.nan
        if not worst <= tolerance:
            raise StudyError(
                f"model {name!r}, prompt {capture.prompt!r}: a captured score differs from eager attention by "
                f"{worst:.1e}, where at most {tolerance:g} is rounding; delete {Path(captures[0]).parent} and run "
                "again, and if it differs once more the capture does not fit this model."
            )
        rows.append(
            {
                "model": name,
                "set": capture.set,
                "prompt": capture.prompt,
                "n_tokens": capture.n_tokens,
                "max_mass_difference": worst_mass,
                "max_score_difference": worst,
            }
        )
    return pd.DataFrame(rows)


@torch.inference_mode()
def eager_masses(loaded: LoadedModel, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First column and row sums of the maps Transformers returns, (layer, head, query) float64."""
    model = loaded.model
    with attention_implementation(model, "eager"):
        ids = torch.as_tensor(token_ids, dtype=torch.long, device=model.device)[None]
        maps = model.base_model(ids, use_cache=False, output_attentions=True).attentions
    # A layer that does not attend returns None here, or (MiniMax) a tensor of another shape.
    attended = [m for m in maps if m is not None and m.shape[2:] == (len(token_ids), len(token_ids))]
    both = torch.stack([torch.stack([m[0, ..., 0], m[0].sum(-1)]).double().cpu() for m in attended], 1)
    return both[0].numpy(), both[1].numpy()
