"""The one call of a UNet: what goes in, row by row, and how diffusers wants it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The first dimension of each is rows. `mask` (rows, tokens) is False where the context is padding.

    `text_embeds` and `time_ids` are what SDXL adds.
    """

    x: Tensor
    timesteps: Tensor
    context: Tensor
    mask: Tensor | None = None
    text_embeds: Tensor | None = None
    time_ids: Tensor | None = None


Call = Callable[[Inputs], Tensor]
"""A UNet's call. The answer may be overwritten by the next."""


def evaluate(unet: Any, inputs: Inputs) -> Tensor:
    """(rows, 4, h, w), in the UNet's dtype."""
    added = None
    if inputs.text_embeds is not None:
        added = {"text_embeds": inputs.text_embeds, "time_ids": inputs.time_ids}
    output: Tensor = unet(
        inputs.x,
        inputs.timesteps,
        encoder_hidden_states=inputs.context,
        encoder_attention_mask=inputs.mask,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return output
