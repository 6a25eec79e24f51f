"""(x, σ, conditioning) -> denoised: scalings, ε-prediction, guidance, the one UNet call."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from engine.lora.layers import RowLoras, Weighted
from engine.schedules import NoiseLevels


class Denoiser:
    """Evaluates rows of one latent shape in one call of an ε-predicting UNet.

    Latents stay float32; the UNet runs in its own dtype. denoised = x − σ · ε(x / √(σ² + 1), t(σ)).
    """

    def __init__(self, unet: nn.Module, levels: NoiseLevels) -> None:
        self._unet = unet
        self._loras = RowLoras(unet, lambda lora: lora.unet)
        self.levels = levels
        parameter = next(unet.parameters())
        self.device, self._dtype = parameter.device, parameter.dtype

    def __call__(
        self,
        *,
        x: Sequence[Tensor],
        sigma: Sequence[float],
        conds: Sequence[Sequence[tuple[Tensor, float]]],
        uncond: Sequence[Tensor | None],
        guidance_scale: Sequence[float],
        loras: Sequence[Sequence[Weighted]] = (),
        both: Sequence[bool] = (),
    ) -> list[Tensor]:
        """Each x is (4, h, w), each conditioning (77 · chunks, channels), a cond with its weight.

        denoised = uncond + Σ guidance_scale · weight · (cond − uncond), without the unconds (Liu et al. 2022,
        compositional generation) for a row that has none: there the products' sum must be 1. The answer of a
        row with `both` is denoised and the estimate of its uncond alone, stacked. A row's `loras` hold for
        all its conditionings; none at all is none for every row. Model rows are the first conds of all rows,
        then the second ones of those that have one, …, then the unconds.
        """
        ranks = _ranks(conds)
        guided = [row for row, u in enumerate(uncond) if u is not None]
        rows = [row for rank in (*ranks, guided) for row in rank]
        contexts = [conds[row][i][0] for i, rank in enumerate(ranks) for row in rank]
        weights = [[guidance_scale[row] * conds[row][i][1] for row in rank] for i, rank in enumerate(ranks)]
        # Made before the call, which they would otherwise wait for.
        indices = [torch.tensor(rank, dtype=torch.long, device=self.device) for rank in (*ranks, guided)]
        columns = [self._column(rank) for rank in weights]
        latents = torch.stack(list(x))
        sigmas = self._column(sigma)
        scaled = latents / (sigmas**2 + 1).sqrt()
        timesteps = torch.from_numpy(self.levels.timestep(np.array([sigma[row] for row in rows])))
        context, mask = _stacked([*contexts, *(u for u in uncond if u is not None)])
        with self._loras.added([loras[row] for row in rows] if loras else []):
            epsilon = self._unet(
                scaled[rows].to(self._dtype),
                timesteps.to(self.device, torch.float32),
                encoder_hidden_states=context,
                encoder_attention_mask=mask,
                return_dict=False,
            )[0].float()
        *e_conds, e_uncond = epsilon.split([len(index) for index in indices])
        base = torch.zeros_like(latents).index_copy(0, indices[-1], e_uncond)
        e = base
        for index, weight, e_cond in zip(indices[:-1], columns, e_conds, strict=True):
            e = e.index_add(0, index, weight * (e_cond - base[index]))
        denoised = list((latents - sigmas * e).unbind())
        for row in guided:
            if both and both[row]:
                denoised[row] = torch.stack([denoised[row], latents[row] - sigmas[row] * base[row]])
        return denoised

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None, None]


def _ranks(conds: Sequence[Sequence[object]]) -> list[list[int]]:
    """The rows that have a first cond, those that have a second, …"""
    return [[row for row, own in enumerate(conds) if len(own) > i] for i in range(max(map(len, conds)))]


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
