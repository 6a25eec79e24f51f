"""(x, σ, conditioning) -> denoised: scalings, ε- and v-prediction, guidance, the one UNet call."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.conditioning import Cond
from engine.deepcache import Turn, taking
from engine.lora.layers import RowLoras, Weighted
from engine.row_counts import RowCounts
from engine.schedules import NoiseLevels
from engine.unet import Call, Inputs, evaluate


def _epsilon(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The UNet predicts the noise: denoised = x − σ · ε."""
    return torch.ones_like(sigma), -sigma


def _v(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Salimans and Ho 2022: denoised = x / (σ² + 1) − v · σ / √(σ² + 1)."""
    square = sigma**2 + 1
    return 1 / square, -sigma / square.sqrt()


PREDICTIONS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = MappingProxyType(
    {"epsilon": _epsilon, "v": _v}
)
"""What a UNet may predict, as σ -> what x, and what its output, are multiplied with in denoised."""


class Denoiser:
    """Evaluates rows of one latent shape in one call of a UNet, whose output is one of PREDICTIONS.

    Latents stay float32; the UNet runs in its dtype of the moment, on x / √(σ² + 1) and t(σ). `singly` asks
    its callers for one row at a time. `call` may be replaced by what computes the same sooner as long as the
    UNet is as it was placed, its weights' values aside; `row_counts` are those that it is made for.
    """

    def __init__(self, unet: nn.Module, levels: NoiseLevels, prediction: str = "epsilon") -> None:
        self.unet = unet
        self.singly = False
        self._plain_call = partial(evaluate, unet)
        self.call: Call = self._plain_call
        self.row_counts: RowCounts | None = None
        self._scales = PREDICTIONS[prediction]
        self._loras = RowLoras(unet, lambda lora: lora.unet)
        self.levels = levels
        self.device = next(unet.parameters()).device
        self._turns: Sequence[Turn] = ()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def most(self, area: int) -> int | None:
        """Rows of latents of this area that a call should have at most; None: it does not matter."""
        return self.row_counts.largest(area) if self.row_counts else None

    def plain(self) -> "Denoiser":
        """The same without `call`, for a UNet that is not as it was placed."""
        plain = copy(self)
        plain.call = self._plain_call
        return plain

    def runs_like(self, other: "Denoiser") -> None:
        """Share what was made for the same UNet, whose weights have new values since."""
        self.call, self.row_counts = other.call, other.row_counts

    def reusing(self, turns: Sequence[Turn]) -> Self:
        """The same for one call, of rows that reuse features: full turns for all of them, or for none."""
        own = copy(self)
        own._turns = turns
        return own

    def __call__(
        self,
        *,
        x: Sequence[Tensor],
        sigma: Sequence[float],
        conds: Sequence[Sequence[tuple[Cond, float]]],
        uncond: Sequence[Cond | None],
        guidance_scale: Sequence[float],
        loras: Sequence[Sequence[Weighted]] = (),
        both: Sequence[bool] = (),
    ) -> list[Tensor]:
        """Each x is (4, h, w), each cond has its weight.

        denoised = uncond + Σ guidance_scale · weight · (cond − uncond), without the unconds (Liu et al. 2022,
        compositional generation) for a row that has none: there the products' sum must be 1. The answer of a
        row with `both` is denoised and the estimate of its uncond alone, stacked. A row's `loras` hold for
        all its conditionings; none at all is none for every row. Model rows are the first conds of all rows,
        then the second ones of those that have one, …, then the unconds.
        """
        ranks = _ranks(conds)
        guided = [row for row, u in enumerate(uncond) if u is not None]
        rows = [row for rank in (*ranks, guided) for row in rank]
        used = [conds[row][i][0] for i, rank in enumerate(ranks) for row in rank]
        used += [u for u in uncond if u is not None]
        weights = [[guidance_scale[row] * conds[row][i][1] for row in rank] for i, rank in enumerate(ranks)]
        # Made before the call, which they would otherwise wait for.
        indices = [torch.tensor(rank, dtype=torch.long, device=self.device) for rank in (*ranks, guided)]
        columns = [self._column(rank) for rank in weights]
        latents = torch.stack(list(x))
        sigmas = self._column(sigma)
        scaled = latents / (sigmas**2 + 1).sqrt()
        timesteps = torch.from_numpy(self.levels.timestep(np.array([sigma[row] for row in rows])))
        context, mask = _stacked([cond.context for cond in used])
        skip, scale = self._scales(sigmas)
        inputs = Inputs(
            x=_with_beside(scaled[rows], used).to(self.dtype),
            timesteps=timesteps.to(self.device, torch.float32),
            context=context.to(self.dtype),
            mask=mask,
            **self._added(used, latents.shape[2:]),
        )
        with self._loras.added([loras[row] for row in rows] if loras else []) as changed:
            call = self._plain_call if changed else self.call
            if self._turns:
                call = partial(evaluate, taking(self._turns, self.unet, rows))
            output = call(inputs).float()
        *of_conds, of_uncond = output.split_with_sizes([len(index) for index in indices])
        base = torch.zeros_like(latents).index_copy(0, indices[-1], of_uncond)
        sum_ = base
        for index, weight, of_cond in zip(indices[:-1], columns, of_conds, strict=True):
            sum_ = sum_.index_add(0, index, weight * (of_cond - base[index]))
        denoised = list((skip * latents + scale * sum_).unbind())
        for row in guided:
            if both and both[row]:
                unguided = skip[row] * latents[row] + scale[row] * base[row]
                denoised[row] = torch.stack([denoised[row], unguided])
        return denoised

    def _added(self, conds: Sequence[Cond], size: tuple[int, ...]) -> dict[str, Tensor]:
        """Podell et al. 2023: the pooled states, and the sizes in pixels: original, crop's corner, target.

        The original and the target are (height, width) of the latent times 8; nothing is cropped. The refiner
        has an aesthetic score in the place of the target.
        """
        pooled = [cond.pooled for cond in conds if cond.pooled is not None]
        if not pooled:
            return {}
        height, width = (8 * side for side in size)
        scores = [cond.aesthetic_score for cond in conds]
        last = [[height, width] if score is None else [score] for score in scores]
        ids = [[height, width, 0, 0, *target] for target in last]
        time_ids = torch.tensor(ids, dtype=torch.float32, device=self.device)
        return {"text_embeds": torch.stack(pooled).to(self.dtype), "time_ids": time_ids}

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)[:, None, None, None]


def _ranks(conds: Sequence[Sequence[object]]) -> list[list[int]]:
    """The rows that have a first cond, those that have a second, …"""
    return [[row for row, own in enumerate(conds) if len(own) > i] for i in range(max(map(len, conds)))]


def _with_beside(x: Tensor, conds: Sequence[Cond]) -> Tensor:
    beside = [cond.beside for cond in conds if cond.beside is not None]
    return torch.cat([x, torch.stack(beside)], dim=1) if beside else x


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
