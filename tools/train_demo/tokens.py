"""CLIP's byte-pair tokenizer and the way a prompt becomes chunks of 77 tokens with weights."""

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache

import torch
from transformers import CLIPTokenizer

from engine.tokenizer import load_tokenizer

BEGIN, END = 49406, 49407
CHUNK = 75
"""Tokens of a chunk beside its begin and end marks."""

Segment = tuple[str, float]
"""A piece of a prompt and its weight."""


@lru_cache(1)
def tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.5."""
    return load_tokenizer()


@lru_cache(1 << 17)
def token_ids(word: str) -> tuple[int, ...]:
    """The tokens of a piece of text without spaces, marks left out."""
    return tuple(tokenizer()(word, add_special_tokens=False)["input_ids"])


@lru_cache(1)
def vocabulary_words() -> list[str]:
    """Every whole word of the vocabulary written in plain small letters."""
    words = (w[:-4] for w in tokenizer().get_vocab() if w.endswith("</w>"))
    return sorted(w for w in words if len(w) > 1 and w.isascii() and w.isalpha())


def chunks(segments: Sequence[Segment], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments -> ids (count, 77) int64 and weights (count, 77) float32; what is over is cut."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in segments:
        for word in text.split():
            tokens = token_ids(word)
            ids += tokens
            weights += [weight] * len(tokens)
    all_ids = torch.full((count, CHUNK + 2), END)
    all_weights = torch.ones(count, CHUNK + 2)
    all_ids[:, 0] = BEGIN
    for i in range(count):
        part = slice(i * CHUNK, (i + 1) * CHUNK)
        n = len(ids[part])
        all_ids[i, 1 : n + 1] = torch.tensor(ids[part])
        all_weights[i, 1 : n + 1] = torch.tensor(weights[part])
    return all_ids, all_weights


def length(segments: Sequence[Segment]) -> int:
    """How many tokens the segments have, marks left out."""
    return sum(len(token_ids(word)) for text, _ in segments for word in text.split())


def random_words(rng: random.Random, count: int, reserved: frozenset[str]) -> str:
    """Words drawn from CLIP's vocabulary, none of them reserved."""
    words = vocabulary_words()
    drawn = (w for w in iter(lambda: rng.choice(words), "") if w not in reserved)
    return " ".join(itertools.islice(drawn, count))
