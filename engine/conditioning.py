"""Prompts -> conditioning: tokens, 75-token chunks, emphasis, clip skip, a cache."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from engine.prompts import Prompt

CHUNK = 75
COMMA_BACKTRACK = 20


class Tokenizer(Protocol):
    bos_token_id: int
    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class TextEncoder(Protocol):
    """CLIP's text transformer, as far as it is used here."""

    num_layers: int

    def hidden_states(self, tokens: Tensor, skip: int) -> Tensor:
        """(chunks, 77) token ids -> (chunks, 77, channels): layer −skip, then the final layer norm."""


@dataclass(slots=True)
class Chunk:
    """At most 75 tokens with their weights; `last_comma` is the position behind the last comma."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    last_comma: int = -1

    def append(self, token: int, weight: float) -> None:
        self.tokens.append(token)
        self.weights.append(weight)

    def cut(self, position: int) -> "Chunk":
        """Move everything from `position` on into a chunk of its own."""
        rest = Chunk(self.tokens[position:], self.weights[position:])
        del self.tokens[position:], self.weights[position:]
        return rest


def chunked(prompt: Prompt, tokenizer: Tokenizer) -> list[Chunk]:
    """Fill chunks of 75 tokens in order; BREAK closes one early.

    Where a chunk overflows within 20 tokens behind a comma, what follows the comma moves to the next one,
    so that a phrase is not torn apart.
    """
    (comma,) = tokenizer.encode(",", add_special_tokens=False)
    chunks = [Chunk()]
    for text, weight in prompt:
        if text is None:
            chunks.append(Chunk())
            continue
        for token in tokenizer.encode(text, add_special_tokens=False):
            if len(chunks[-1].tokens) == CHUNK:
                chunks.append(_overflow(chunks[-1], token == comma))
            chunks[-1].append(token, weight)
            if token == comma:
                chunks[-1].last_comma = len(chunks[-1].tokens)
    return chunks


def _overflow(full: Chunk, comma_comes: bool) -> Chunk:
    near = full.last_comma != -1 and CHUNK - full.last_comma < COMMA_BACKTRACK
    return full.cut(full.last_comma) if near and not comma_comes else Chunk()


class Conditioner:
    """Encodes prompts, all chunks that are not cached in one call, and remembers the last `cache_size`."""

    def __init__(
        self,
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        device: torch.device,
        *,
        cache_size: int = 256,
    ) -> None:
        self._text_encoder = text_encoder
        self._tokenizer = tokenizer
        self._device = device
        self._cache: OrderedDict[tuple[Prompt, int], Tensor] = OrderedDict()
        self._cache_size = cache_size

    def __call__(self, prompts: Sequence[Prompt], clip_skip: int) -> list[Tensor]:
        """Each prompt as (77 · chunks, channels). `clip_skip` 1 is the last layer, 2 the one before, …"""
        found: dict[Prompt, Tensor] = {}
        for prompt in dict.fromkeys(prompts):
            if (cached := self._cache.get((prompt, clip_skip))) is not None:
                self._cache.move_to_end((prompt, clip_skip))
                found[prompt] = cached
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if missing:
            found.update(self._encode(missing, clip_skip))
        return [found[prompt] for prompt in prompts]

    def _encode(self, prompts: Sequence[Prompt], clip_skip: int) -> dict[Prompt, Tensor]:
        split = [chunked(prompt, self._tokenizer) for prompt in prompts]
        chunks = [chunk for prompt in split for chunk in prompt]
        skip = min(clip_skip, self._text_encoder.num_layers)
        hidden = self._text_encoder.hidden_states(self._tokens(chunks), skip)
        weighted = iter(_emphasised(hidden, self._weights(chunks)))
        encoded = {
            prompt: torch.cat([next(weighted) for _ in parts])
            for prompt, parts in zip(prompts, split, strict=True)
        }
        for prompt, conditioning in encoded.items():
            self._cache[prompt, clip_skip] = conditioning
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return encoded

    def _tokens(self, chunks: Sequence[Chunk]) -> Tensor:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        rows = [[bos, *c.tokens, *[eos] * (CHUNK - len(c.tokens)), eos] for c in chunks]
        return torch.tensor(rows, device=self._device)

    def _weights(self, chunks: Sequence[Chunk]) -> Tensor:
        rows = [[1.0, *c.weights, *[1.0] * (CHUNK - len(c.weights)), 1.0] for c in chunks]
        return torch.tensor(rows, device=self._device)


def _emphasised(hidden: Tensor, weights: Tensor) -> Tensor:
    """z · w, then scaled so that each chunk keeps its mean; a chunk without weights is left as it is.

    hidden (chunks, 77, channels), weights (chunks, 77).
    """
    z = hidden.float()
    weighted = z * weights[:, :, None]
    mean, weighted_mean = (t.mean(dim=(1, 2), keepdim=True) for t in (z, weighted))
    scale = torch.where(weighted_mean.abs() > 1e-8, mean / weighted_mean, torch.ones_like(mean))
    plain = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(plain, z, weighted * scale).to(hidden.dtype)
