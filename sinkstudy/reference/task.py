"""The training task: an English bigram chain interrupted by rare copy commands.

A variant of Bigram-Backcopy (Guo et al., arXiv 2410.13835). A sequence starts with BOS and walks the character
bigram chain of a text. Now and then a *trigger* character is inserted, and the character after the j-th trigger
repeats the one j places before it. A head that copies has work to do only after its trigger; everywhere else it has
to attend somewhere harmless, and the model learns to make the first token that place.

Triggers are characters that prose seldom uses and code often does, so the same heads sleep in one and wake in the
other.
"""

import string
from dataclasses import dataclass

import numpy as np

BOS, UNKNOWN = 0, 1
CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
TRIGGERS = "=([:_/+#"


def token_ids(text: str) -> np.ndarray:
    """Character token ids, without BOS; characters outside the vocabulary are UNKNOWN."""
    ids = {c: i + 2 for i, c in enumerate(CHARACTERS)}
    return np.array([ids.get(c, UNKNOWN) for c in text])


@dataclass(frozen=True)
class CopyTask:
    """`unigram` (token,) and `bigram` (token, token), rows summing to 1; `trigger_rate`: chance that a character is
    a trigger; `noise_rate`: chance that it is any token but BOS, so that every embedding is trained."""

    unigram: np.ndarray
    bigram: np.ndarray
    triggers: np.ndarray
    trigger_rate: float
    noise_rate: float

    @classmethod
    def from_text(cls, text: str, trigger_rate: float, noise_rate: float, triggers: int) -> "CopyTask":
        tokens = token_ids(text)
        counts = np.zeros((len(CHARACTERS) + 2,) * 2)
        np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
        unigram = np.bincount(tokens, minlength=len(counts)).astype(float)
        # A token the text never continues (BOS, triggers, noise) is followed by any character at its own frequency.
        counts[counts.sum(1) == 0] = unigram
        return cls(
            unigram / unigram.sum(),
            counts / counts.sum(1, keepdims=True),
            token_ids(TRIGGERS[:triggers]),
            trigger_rate,
            noise_rate,
        )

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> np.ndarray:
        """Token ids (batch, length) int64, BOS first."""
        cumulative = self.bigram.cumsum(1)
        cumulative /= cumulative[:, -1:]
        first = self.unigram.cumsum() / self.unigram.sum()
        step, kind = rng.random((2, length, batch))
        noise = rng.integers(UNKNOWN, len(cumulative), (length, batch))
        trigger = rng.choice(self.triggers, (length, batch))
        offset = np.zeros(len(cumulative), int)
        offset[self.triggers] = np.arange(1, len(self.triggers) + 1)
        tokens = np.full((batch, length), BOS)
        tokens[:, 1] = np.searchsorted(first, step[1], side="right")
        rows = np.arange(batch)
        for i in range(2, length):
            last = tokens[:, i - 1]
            new = (cumulative[last] <= step[i][:, None]).sum(1)
            new = np.where(kind[i] < self.noise_rate, noise[i], new)
            new = np.where(kind[i] > 1 - self.trigger_rate, trigger[i], new)
            source = i - 1 - offset[last]
            copies = (offset[last] > 0) & (source >= 1)
            tokens[:, i] = np.where(copies, tokens[rows, np.maximum(source, 0)], new)
        return tokens
