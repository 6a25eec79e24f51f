"""Evaluations that reuse the inner features of earlier ones (Ma et al. 2023, DeepCache), row by row.

Of a row's evaluations the first, and then every so many, run the whole UNet; the others its outermost blocks
alone, on what the last up block was given at the row's last full one. A row's turn depends on its own
evaluations alone, and full and other ones share no call, so its company never shows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(slots=True, eq=False)
class Kept:
    """A row's features (conditionings, channels, h, w), once a full evaluation has made them.

    SD 1.5 has 10 MB of them for a guided row of 512 × 512 in float16, SDXL 42 MB for one of 1024 × 1024.
    """

    features: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One evaluation of a row: a `full` one fills what is `kept`, another one reads it."""

    kept: Kept
    full: bool


def turns(full_every: int) -> Iterator[Turn | None]:
    """Of a row's evaluations by one model; None for each where all are full."""
    kept = Kept()
    for done in count():
        full = done % full_every == 0
        if full:
            kept = Kept()
        yield None if full_every == 1 else Turn(kept, full)


def taking(batch: Sequence[Turn], unet: nn.Module, rows: Sequence[int]) -> Callable[..., tuple[Tensor]]:
    """What to call as the UNet, for turns that are all full, or none of them. `rows`: whose each input is."""
    return partial(_full if batch[0].full else _outer, [turn.kept for turn in batch], unet, rows)


def _full(
    kept: Sequence[Kept], unet: Any, rows: Sequence[int], *inputs: Tensor, **conditions: Any
) -> tuple[Tensor]:
    seen: list[Tensor] = []
    handle = unet.up_blocks[-1].register_forward_pre_hook(
        lambda block, args, given: seen.append(given["hidden_states"]), with_kwargs=True
    )
    try:
        output: tuple[Tensor] = unet(*inputs, **conditions)
    finally:
        handle.remove()
    for own, row in enumerate(kept):
        row.features = seen[0][[place for place, of in enumerate(rows) if of == own]]
    return output


def _outer(
    kept: Sequence[Kept],
    unet: Any,
    rows: Sequence[int],
    x: Tensor,
    timesteps: Tensor,
    **conditions: Any,
) -> tuple[Tensor]:
    """The first down block's layers and the last up block, in between what was kept."""
    features = [iter(_made(row)) for row in kept]
    inner = torch.stack([next(features[of]) for of in rows]).to(x.dtype)
    embedding = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timesteps))
    added = unet.get_aug_embed(
        emb=embedding,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        added_cond_kwargs=conditions["added_cond_kwargs"],
    )
    embedding = embedding if added is None else embedding + added
    down, up = unet.down_blocks[0], unet.up_blocks[-1]
    beginning = unet.conv_in(x)
    _, skipped = down(beginning, temb=embedding, **_context(down, conditions))
    skipped = (beginning, *skipped)[: len(up.resnets)]  # without what is downsampled
    x = up(inner, temb=embedding, res_hidden_states_tuple=skipped, **_context(up, conditions))
    return (unet.conv_out(unet.conv_act(unet.conv_norm_out(x))),)


def _made(kept: Kept) -> Tensor:
    assert kept.features is not None
    return kept.features


def _context(block: Any, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """What a block attends to, if it does. The mask as what is added to scores, as the UNet makes it."""
    if not getattr(block, "has_cross_attention", False):
        return {}
    context, mask = conditions["encoder_hidden_states"], conditions["encoder_attention_mask"]
    bias = None if mask is None else ((1 - mask.to(context.dtype)) * -10000.0)[:, None]
    return {"encoder_hidden_states": context, "encoder_attention_mask": bias}
