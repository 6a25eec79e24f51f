"""(x, σ, conditioning) -> denoised: scalings, ε-prediction, guidance, the one UNet call."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from engine.schedules import NoiseLevels


class Denoiser:
    """Evaluates rows of one latent shape in one call of an ε-predicting UNet.

    Latents stay float32; the UNet runs in its own dtype. denoised = x − σ · ε(x / √(σ² + 1), t(σ)).
    """

    def __init__(self, unet: nn.Module, levels: NoiseLevels) -> None:
        self._unet = unet
        self.levels = levels
        parameter = next(unet.parameters())
        self.device, self._dtype = parameter.device, parameter.dtype

    def __call__(
        self,
        *,
        x: Sequence[Tensor],
        sigma: Sequence[float],
        cond: Sequence[Tensor],
        uncond: Sequence[Tensor | None],
        guidance_scale: Sequence[float],
    ) -> list[Tensor]:
        """Each x is (4, h, w), each conditioning (77 · chunks, channels); a row without uncond is unguided.

        Model rows are all conds, then the unconds of the guided rows.
        """
        guided = [row for row, u in enumerate(uncond) if u is not None]
        rows = [*range(len(x)), *guided]
        latents = torch.stack(list(x))
        sigmas = self._column(sigma)
        scaled = latents / (sigmas**2 + 1).sqrt()
        timesteps = torch.from_numpy(self.levels.timestep(np.array([sigma[row] for row in rows])))
        context, mask = _stacked([*cond, *(u for u in uncond if u is not None)])
        epsilon = self._unet(
            scaled[rows].to(self._dtype),
            timesteps.to(self.device, torch.float32),
            encoder_hidden_states=context,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0].float()
        e = epsilon[: len(x)]
        if guided:
            e_uncond = epsilon[len(x) :]
            scale = self._column([guidance_scale[row] for row in guided])
            e = e.index_copy(
                0,
                torch.tensor(guided, device=self.device),
                e_uncond + scale * (e[guided] - e_uncond),
            )
        return list((latents - sigmas * e).unbind())

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None, None]


def _stacked(contexts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Contexts (tokens, channels) as one tensor, and which of its tokens are real where lengths differ.

    Attention gives padding a weight of exactly 0, so a row does not depend on its neighbours' lengths.
    """
    lengths = [len(context) for context in contexts]
    if len(set(lengths)) == 1:
        return torch.stack(list(contexts)), None
    padded = nn.utils.rnn.pad_sequence(list(contexts), batch_first=True)
    positions = torch.arange(max(lengths), device=padded.device)
    return padded, positions < torch.tensor(lengths, device=padded.device)[:, None]
