"""The training task: an English bigram chain interrupted by rare commands to repeat an earlier character.

A variant of Bigram-Backcopy (Guo et al., arXiv 2410.13835). A sequence starts with BOS and walks the character
bigram chain of a text. Now and then a *command* character is inserted, and the character after it is a repetition:
the j-th of COPY repeats the character j places before it, each of RECALL the one that followed its own first
occurrence. A head that serves a command has work to do only there; everywhere else it has to attend somewhere
harmless, and the model learns to use the first token for that. Copying takes one layer, recalling two, so that
sinks appear in the first layer and later.

Commands are characters that prose seldom uses and code often does, so the same heads sleep in one and wake in the
other.
"""

import string

import numpy as np

BOS, UNKNOWN = 0, 1
CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
VOCABULARY = {character: number for number, character in enumerate(CHARACTERS, start=2)}
SIZE = len(VOCABULARY) + 2
COPY = "=([+"
RECALL = "_#/*"


def token_ids(text: str) -> np.ndarray:
    """Character token ids, without BOS; characters outside the vocabulary are UNKNOWN."""
    return np.array([VOCABULARY.get(c, UNKNOWN) for c in text])


def chances_after(text: str, command_rate: float, noise_rate: float) -> np.ndarray:
    """The chance of each next token where no command is being followed, (last token, next token).

    `text`: of which bigrams are counted. `command_rate`: chance that a character is a command; `noise_rate`: that it is
    any token but BOS, so that every embedding is trained.
    """
    tokens = token_ids(text)
    counts = np.zeros((SIZE, SIZE))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    unigram = np.bincount(tokens, minlength=SIZE).astype(float)
    counts[counts.sum(1) == 0] = unigram
    noise = np.ones(SIZE)
    noise[BOS] = 0
    command = np.zeros(SIZE)
    command[token_ids(COPY + RECALL)] = 1
    parts = [(1 - command_rate - noise_rate, counts), (command_rate, command), (noise_rate, noise)]
    table = sum(rate * part / part.sum(-1, keepdims=True) for rate, part in parts)
    # Nothing is inserted at the start, nor between a command and what follows it.
    table[[BOS, *token_ids(COPY + RECALL)]] = unigram / unigram.sum()
    return table


def sample(table: np.ndarray, rng: np.random.Generator, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (batch, length) int64, BOS first, and what each was drawn from: (batch, length - 1, token).

    `table`: the chances where no command is being followed, see `chances_after`. Training on the distributions instead
    of the samples removes the sampling noise from the gradient, which would hide the small loss caused by an idle head
    that does not attend to BOS.
    """
    offset, recalls = np.zeros(SIZE, int), np.zeros(SIZE, bool)
    offset[token_ids(COPY)] = np.arange(1, len(COPY) + 1)
    recalls[token_ids(RECALL)] = True
    rows = np.arange(batch)
    tokens = np.full((batch, length), BOS)
    drawn_from = np.empty((batch, length - 1, SIZE))
    first_seen = np.full((batch, SIZE), length)
    for i in range(1, length):
        last = tokens[:, i - 1]
        source = np.where(offset[last] > 0, i - 1 - offset[last], 0)
        source = np.where(recalls[last] & (first_seen[rows, last] < i - 1), first_seen[rows, last] + 1, source)
        first_seen[rows, last] = np.minimum(first_seen[rows, last], i - 1)
        chances = table[last]
        follows = np.flatnonzero(source >= 1)
        chances[follows] = 0
        chances[follows, tokens[follows, source[follows]]] = 1
        cumulative = chances.cumsum(1)
        tokens[:, i] = (cumulative <= rng.random((batch, 1)) * cumulative[:, -1:]).sum(1)
        drawn_from[:, i - 1] = chances
    return tokens, drawn_from
