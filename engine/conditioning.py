"""Prompts -> conditioning: tokens, embeddings, 75-token chunks, emphasis, clip skip, a cache."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import Tensor

from engine.embeddings import NO_EMBEDDINGS, Embeddings, Vocabulary
from engine.lora.layers import RowLoras, Weighted
from engine.prompts import Prompt
from engine.protocol import InvalidJob

CHUNK = 75
COMMA_BACKTRACK = 20
MAX_CHUNKS = 16

Key = tuple[Prompt, int, bool, tuple[tuple[str, float], ...]]
"""A prompt, its clip skip, whether emphasis keeps the mean, and the (digest, weight) of its LoRAs."""

Vector = tuple[int, int, Tensor]
"""(chunk, position, what stands there in place of the token's own embedding)."""


class Tokenizer(Protocol):
    bos_token_id: int
    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Cond:
    """What guides an evaluation: a prompt's context (77 · chunks, channels), and what some families add.

    `pooled` (channels,) is SDXL's, `aesthetic_score` its refiner's. `beside` (5, h, w), of checkpoints for
    inpainting, goes into the UNet with x: the mask, then the latent of the picture without what is masked.
    """

    context: Tensor
    pooled: Tensor | None = None
    beside: Tensor | None = None
    aesthetic_score: float | None = None

    def zeros(self) -> "Cond":
        """As of no text at all."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return replace(self, context=torch.zeros_like(self.context), pooled=pooled)


class TextEncoder(Protocol):
    """One of a checkpoint's text transformers. `width`: of the vectors that stand for a token."""

    width: int

    def encode(
        self, tokens: Tensor, clip_skip: int, vectors: Sequence[Vector]
    ) -> tuple[Tensor, Tensor | None]:
        """(chunks, 77) token ids -> (chunks, 77, channels), and (chunks, channels) where one is pooled."""


@dataclass(slots=True)
class Chunk:
    """At most 75 tokens, or vectors in the place of some, with their weights.

    `last_comma` is the position behind the last comma.
    """

    tokens: list[int | Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    last_comma: int = -1

    def append(self, token: int | Tensor, weight: float) -> None:
        self.tokens.append(token)
        self.weights.append(weight)

    def cut(self, position: int) -> "Chunk":
        """Move everything from `position` on into a chunk of its own."""
        rest = Chunk(self.tokens[position:], self.weights[position:])
        del self.tokens[position:], self.weights[position:]
        return rest


def chunked(prompt: Prompt, tokenizer: Tokenizer, vocabulary: Vocabulary) -> list[Chunk]:
    """Fill chunks of 75 tokens in order; BREAK closes one early, and so does an embedding that has no room.

    Where a chunk overflows within 20 tokens behind a comma, what follows the comma moves to the next one,
    so that a phrase is not torn apart.
    """
    (comma,) = tokenizer.encode(",", add_special_tokens=False)
    chunks = [Chunk()]
    for text, weight in prompt:
        if text is None:
            chunks.append(Chunk())
            continue
        for token in vocabulary.inserted(tokenizer.encode(text, add_special_tokens=False)):
            if isinstance(token, int):
                _add_token(chunks, token, weight, comma)
            else:
                _add_vectors(chunks, token, weight)
    return chunks


def _add_token(chunks: list[Chunk], token: int, weight: float, comma: int) -> None:
    if len(chunks[-1].tokens) == CHUNK:
        chunks.append(_overflow(chunks[-1], token == comma))
    chunks[-1].append(token, weight)
    if token == comma:
        chunks[-1].last_comma = len(chunks[-1].tokens)


def _add_vectors(chunks: list[Chunk], vectors: Tensor, weight: float) -> None:
    """An embedding stays in one piece."""
    if len(chunks[-1].tokens) + len(vectors) > CHUNK:
        chunks.append(Chunk())
    for vector in vectors:
        chunks[-1].append(vector, weight)


def _overflow(full: Chunk, comma_comes: bool) -> Chunk:
    near = full.last_comma != -1 and CHUNK - full.last_comma < COMMA_BACKTRACK
    return full.cut(full.last_comma) if near and not comma_comes else Chunk()


class Conditioner:
    """Encodes prompts, all chunks that are not cached in one call, and remembers the last `cache_size`.

    Several text encoders read the same chunks; their channels stand one behind another, and so do those of
    the embeddings' vectors. `loras` are of each text encoder. While `singly` is true, each prompt has a call
    of its own.
    """

    def __init__(
        self,
        text_encoders: Sequence[TextEncoder],
        tokenizer: Tokenizer,
        device: torch.device,
        *,
        cache_size: int = 256,
        loras: Sequence[RowLoras] = (),
        embeddings: Embeddings = NO_EMBEDDINGS,
    ) -> None:
        self._text_encoders = text_encoders
        self._tokenizer = tokenizer
        self._device = device
        self._cache: OrderedDict[Key, Cond] = OrderedDict()
        self._cache_size = cache_size
        self._loras = loras
        self._embeddings = embeddings
        self.singly = False
        self._vocabulary = Vocabulary(
            (tokenizer.encode(name, add_special_tokens=False), vectors)
            for name, vectors in embeddings.loaded.items()
        )
        split = partial(chunked, tokenizer=tokenizer, vocabulary=self._vocabulary)
        self._chunks: Callable[[Prompt], Sequence[Chunk]] = lru_cache(cache_size)(split)

    def with_embeddings(self, embeddings: Embeddings) -> "Conditioner":
        """This with other embeddings, and nothing encoded yet. Who holds this one notices nothing."""
        changed = Conditioner(
            self._text_encoders,
            self._tokenizer,
            self._device,
            cache_size=self._cache_size,
            loras=self._loras,
            embeddings=embeddings,
        )
        changed.singly = self.singly
        return changed

    def embeddings_in(self, text: str) -> dict[str, str]:
        """The embeddings that a text names, with their hashes."""
        if not self._embeddings.loaded:
            return {}
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        found = {id(vectors) for vectors in self._vocabulary.inserted(tokens)}
        hashes = self._embeddings.hashes
        return {name: hashes.get(name, "") for name, v in self._embeddings.loaded.items() if id(v) in found}

    def check(self, prompts: Sequence[Prompt], field: str) -> None:
        """Raises InvalidJob, naming `field`, for a prompt of more chunks than a job may have."""
        longest = max(len(self._chunks(prompt)) for prompt in prompts)
        if longest > MAX_CHUNKS:
            raise InvalidJob(f"{field}: {longest} chunks of {CHUNK} tokens; allowed are up to {MAX_CHUNKS}")

    def __call__(
        self,
        prompts: Sequence[Prompt],
        clip_skip: int,
        loras: Sequence[Sequence[Weighted]] = (),
        *,
        keep_mean: bool = True,
    ) -> list[Cond]:
        """Each prompt's conditioning. `clip_skip` 1 is the last layer, 2 the one before, …

        `keep_mean`: emphasis leaves a chunk's mean as it was. `loras` are each prompt's own; none at all is
        none for every prompt.
        """
        rows = loras or [()] * len(prompts)
        keys = [(p, clip_skip, keep_mean, _names(row)) for p, row in zip(prompts, rows, strict=True)]
        found: dict[Key, Cond] = {}
        for key in dict.fromkeys(keys):
            if (cached := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                found[key] = cached
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in found}
        batches = [{key: row} for key, row in missing.items()] if self.singly else [missing]
        for batch in batches if missing else ():
            found.update(self._encode(batch, clip_skip, keep_mean))
        return [found[key] for key in keys]

    def _encode(
        self, rows: Mapping[Key, Sequence[Weighted]], clip_skip: int, keep_mean: bool
    ) -> dict[Key, Cond]:
        split = [self._chunks(prompt) for prompt, *_ in rows]
        chunks = [chunk for prompt in split for chunk in prompt]
        with self._added([row for row, parts in zip(rows.values(), split, strict=True) for _ in parts]):
            contexts, pooled = self._states(chunks, clip_skip, keep_mean)
        encoded = dict(zip(rows, _conds(contexts, pooled, list(map(len, split))), strict=True))
        for key, conditioning in encoded.items():
            self._cache[key] = conditioning
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return encoded

    def _states(
        self, chunks: Sequence[Chunk], clip_skip: int, keep_mean: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(chunks, 77, channels) of all text encoders, each with emphasis; the pooled one is without."""
        tokens, weights, vectors = self._tokens(chunks), self._weights(chunks), _vectors(chunks)
        contexts, pooled, first = [], None, 0
        for encoder in self._text_encoders:
            own = [(row, position, v[first : first + encoder.width]) for row, position, v in vectors]
            hidden, pooled = encoder.encode(tokens, clip_skip, own)
            contexts.append(_emphasised(hidden, weights, keep_mean=keep_mean))
            first += encoder.width
        return torch.cat(contexts, dim=2), pooled

    @contextmanager
    def _added(self, chunks: Sequence[Sequence[Weighted]]) -> Iterator[None]:
        with ExitStack() as stack:
            for loras in self._loras:
                stack.enter_context(loras.added(chunks))
            yield

    def _tokens(self, chunks: Sequence[Chunk]) -> Tensor:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        ids = [[token if isinstance(token, int) else bos for token in c.tokens] for c in chunks]
        rows = [[bos, *row, *[eos] * (CHUNK - len(row)), eos] for row in ids]
        return torch.tensor(rows, device=self._device)

    def _weights(self, chunks: Sequence[Chunk]) -> Tensor:
        rows = [[1.0, *c.weights, *[1.0] * (CHUNK - len(c.weights)), 1.0] for c in chunks]
        return torch.tensor(rows, device=self._device)


def _conds(contexts: Tensor, pooled: Tensor | None, lengths: Sequence[int]) -> Iterator[Cond]:
    """Prompts of so many chunks each. The pooled state is the first chunk's."""
    first = 0
    for length in lengths:
        context = contexts[first : first + length].flatten(0, 1)
        yield Cond(context.clone(), None if pooled is None else pooled[first].clone())
        first += length


def _names(loras: Sequence[Weighted]) -> tuple[tuple[str, float], ...]:
    """What tells rows' LoRAs apart in the cache; those without a part for a text encoder do not count."""
    return tuple(
        (lora.digest, weight)
        for lora, weight in loras
        if weight and (lora.text_encoder or lora.text_encoder_2)
    )


def _vectors(chunks: Sequence[Chunk]) -> list[Vector]:
    """Behind the token that begins every chunk."""
    return [
        (row, position, token)
        for row, chunk in enumerate(chunks)
        for position, token in enumerate(chunk.tokens, start=1)
        if isinstance(token, Tensor)
    ]


def _emphasised(hidden: Tensor, weights: Tensor, *, keep_mean: bool) -> Tensor:
    """z · w, then, to keep the mean, scaled per chunk; a chunk without weights is left as it is.

    hidden (chunks, 77, channels), weights (chunks, 77).
    """
    z = hidden.float()
    weighted = z * weights[:, :, None]
    if not keep_mean:
        return weighted.to(hidden.dtype)
    mean, weighted_mean = (t.mean(dim=(1, 2), keepdim=True) for t in (z, weighted))
    scale = torch.where(weighted_mean.abs() > 1e-8, mean / weighted_mean, torch.ones_like(mean))
    plain = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(plain, z, weighted * scale).to(hidden.dtype)
