"""Token ids and prompt weights -> conditioning, as the engine makes it."""

from collections.abc import Sequence

import torch
from transformers import CLIPTextModel

from tools.train_demo.architecture import text_model
from tools.train_demo.tokens import Segment, chunks, length


def encode(
    encoder: CLIPTextModel,
    ids: torch.Tensor,
    weights: torch.Tensor,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """(n, chunks, 77) ids and weights -> (n, 77·chunks, width).

    `skip` (n,) bool marks rows encoded with clip skip 2: without the last layer. A weight
    multiplies its token; then each chunk gets back the mean it had before.
    """
    rows, count, tokens = ids.shape
    out = encoder(ids.flatten(0, 1), output_hidden_states=True)
    z = out.last_hidden_state
    if skip is not None:
        early = text_model(encoder).final_layer_norm(out.hidden_states[-2])
        z = torch.where(skip.repeat_interleave(count)[:, None, None], early, z)
    z = emphasise(z.float(), weights.flatten(0, 1))
    return z.reshape(rows, count * tokens, -1)


def emphasise(z: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(n, 77, width) × (n, 77), each row's mean kept."""
    weighted = z * weights[..., None]
    return weighted * (z.mean((1, 2)) / weighted.mean((1, 2)))[:, None, None]


def encode_prompts(encoder: CLIPTextModel, prompts: Sequence[Sequence[Segment]]) -> torch.Tensor:
    """Prompts as weighted segments -> (n, 77·chunks, width); the longest sets the chunks."""
    count = max(1, -(-max(length(p) for p in prompts) // 75))
    pairs = [chunks(p, count) for p in prompts]
    ids = torch.stack([p[0] for p in pairs]).to(encoder.device)
    weights = torch.stack([p[1] for p in pairs]).to(encoder.device)
    return encode(encoder, ids, weights)
