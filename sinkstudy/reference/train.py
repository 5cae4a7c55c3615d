"""Training the reference model."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sinkstudy.capture import watched
from sinkstudy.capture.masses import Masses
from sinkstudy.reference.task import BOS, SIZE, UNKNOWN, VOCABULARY, chances_after, sample, token_ids
from sinkstudy.stats.scores import excess_score, null_score

_WINDOWS_PER_PASS = 64


@dataclass(frozen=True)
class Recipe:
    """All settings that determine the trained weights, up to rounding that differs between machines."""

    layers: int = 4
    heads: int = 8
    head_width: int = 16
    hidden: int = 64
    intermediate: int = 64
    command_rate: float = 0.25
    noise_rate: float = 0.01
    tokens: int = 64
    context: int = 2048
    batch: int = 32
    steps: int = 4000
    warmup: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 1


def train(recipe: Recipe, text: str, evaluation_text: str, every: int = 250) -> tuple[LlamaForCausalLM, pd.DataFrame]:
    """Train from scratch; also the curve: step, loss (mean KL divergence from the task's true next-token distribution,
    nats per token), and sink fractions on `evaluation_text`, every `every` steps."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    table = chances_after(text, recipe.command_rate, recipe.noise_rate)
    model = LlamaForCausalLM(_config(recipe))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    curve, losses = [], []
    for step in tqdm(range(1, recipe.steps + 1), desc="train reference", unit="step", mininterval=5):
        tokens, truth = map(torch.from_numpy, sample(table, rng, recipe.batch, recipe.tokens))
        predicted = torch.log_softmax(model(tokens).logits[:, :-1].float(), -1)
        loss = torch.nn.functional.kl_div(predicted, truth.float(), reduction="none").sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % every == 0:
            score = evaluate(model, evaluation_text, recipe.tokens)
            excess = excess_score(score, null_score(recipe.tokens))
            curve.append(
                {
                    "step": step,
                    "kl": np.mean(losses[-every:]),
                    "sink_fraction": (score >= 0.9).mean(),
                    "non_sink_fraction": (excess < 0.2).mean(),
                    "mean_score": score.mean(),
                }
            )
    return model.eval(), pd.DataFrame(curve)


def evaluate(model: LlamaForCausalLM, text: str, tokens: int) -> np.ndarray:
    """Sink score (layer, head) at `tokens` tokens, averaged over consecutive windows of `text`, each with BOS.

    Text after the last whole window is left out.
    """
    ids = token_ids(text)
    count, width = len(ids) // (tokens - 1), tokens - 1
    windows = torch.from_numpy(ids[: count * width].reshape(count, width))  # (window, query)
    windows = torch.nn.functional.pad(windows, (1, 0), value=BOS)
    scores: dict[int, list[Tensor]] = defaultdict(list)

    def note(layer: int, masses: Masses) -> None:
        scores[layer].append(masses.keys[..., 0].mean(-1, dtype=torch.float64))  # (window, head)

    with watched(model) as forward:
        for batch in windows.split(_WINDOWS_PER_PASS):
            forward(batch, note)
    return torch.stack([torch.cat(scores[layer]).mean(0) for layer in sorted(scores)]).numpy()


def save(model: LlamaForCausalLM, curve: pd.DataFrame, recipe: Recipe, folder: Path) -> None:
    """Write weights, tokenizer and training curve in Hugging Face format."""
    model.save_pretrained(folder)
    _tokenizer(recipe.context).save_pretrained(folder)
    curve.to_csv(folder / "training_curve.csv", index=False, float_format="%.6g")


def _tokenizer(context: int) -> PreTrainedTokenizerFast:
    """One token per character, BOS in front, anything else the unknown token."""
    bos, unknown = "<bos>", "<unk>"
    tokenizer = Tokenizer(models.WordLevel({bos: BOS, unknown: UNKNOWN, **VOCABULARY}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, BOS)]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        unk_token=unknown,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _config(recipe: Recipe) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=SIZE,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_width,
        max_position_embeddings=recipe.context,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=None,
    )


def _rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
