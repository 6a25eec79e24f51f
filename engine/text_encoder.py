"""CLIP's text transformer: tokens -> the layer that conditions a family's UNet, and the pooled state."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.conditioning import Vector
from engine.families.family import TextPart


class ClipTextEncoder:
    """A text encoder of `part`'s family. `width` is the channels of a token's embedding."""

    def __init__(self, model: Any, part: TextPart) -> None:
        self._model = model
        self._inner = getattr(model, "text_model", model)
        self._part = part
        self._layers: int = model.config.num_hidden_layers
        self._end: int = model.config.eos_token_id
        self.width: int = model.config.hidden_size

    def encode(
        self, tokens: Tensor, clip_skip: int, vectors: Sequence[Vector]
    ) -> tuple[Tensor, Tensor | None]:
        """(chunks, 77) token ids -> (chunks, 77, channels), and (chunks, channels) where it is pooled.

        Of the layer that counts: `clip_skip` 1 is the last one, but some families have a fixed one.
        """
        if self._part.pad is not None:
            tokens = _padded(tokens, self._end, self._part.pad)
        embedding: nn.Module = self._model.get_input_embeddings()
        with embedding.register_forward_hook(partial(_insert, vectors)):
            output = self._model(tokens, output_hidden_states=True)
        hidden: Tensor = output.hidden_states[-(self._part.layer or min(clip_skip, self._layers))]
        if self._part.norm:
            hidden = self._inner.final_layer_norm(hidden)
        return hidden, output.text_embeds if self._part.pooled else None


def _padded(tokens: Tensor, end: int, pad: int) -> Tensor:
    """Every token behind a chunk's first `end` replaced by `pad`."""
    ended = (tokens == end).cumsum(1) - (tokens == end).int()
    return tokens.masked_fill(ended > 0, pad)


def _insert(vectors: Sequence[Vector], module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """A forward hook: embeddings' vectors in their places among the tokens' own."""
    if not vectors:
        return output
    rows, positions, values = zip(*vectors, strict=True)
    places = torch.tensor([rows, positions], device=output.device)
    return output.index_put(tuple(places), torch.stack(values).to(output.device, output.dtype))
