"""Each row of a call with its own LoRAs: low-rank changes of a live module's layers, for one call.

y = base(x) + ((x · A) * s) · B, where A and B are the `down` and `up` of all LoRAs of the batch, their ranks
one behind another, and s (rows, ranks) is each row's own weight for them, 0 for a LoRA that is not the
row's. So one call serves any mix of LoRAs and weights; each row pays for the ranks of all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.lora.file import Lora, LowRank

Weighted = tuple[Lora, float]
"""A LoRA and how strongly a row has it."""
Ranks = tuple[tuple[int, int, float], ...]
"""Whose the ranks of a stack are, in order: (place of the LoRA in the batch, rank, alpha / rank)."""


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The changes of one layer by several LoRAs, ranks one behind another."""

    down: Tensor
    up: Tensor
    ranks: Ranks


class RowLoras:
    """Adds rows' LoRAs to one module. While no row has any, the module is as if this were not here.

    `part` picks what of a LoRA is for this module. Keeps the stacks of the last mix of two or more LoRAs,
    which are copies: as much memory again as those LoRAs have.
    """

    def __init__(self, module: nn.Module, part: Callable[[Lora], Mapping[str, LowRank]]) -> None:
        self._module = module
        self._part = part
        self._mix: tuple[str, ...] = ()
        self._stacks: dict[str, Stack] = {}

    @contextmanager
    def added(self, rows: Sequence[Sequence[Weighted]]) -> Iterator[bool]:
        """The module's calls inside have, for each index of their first dimension, that row's LoRAs.

        Yields whether there are any for this module.
        """
        used = {lora.digest: lora for row in rows for lora, weight in row if weight}
        loras = [used[digest] for digest in sorted(used) if self._part(used[digest])]
        if not loras:
            yield False
            return
        weights = _weights(rows, loras, next(self._module.parameters()).device)
        scales: dict[Ranks, Tensor] = {}
        handles = []
        try:
            for path, stack in self._stacked(loras).items():
                if stack.ranks not in scales:
                    scales[stack.ranks] = _scale(weights, stack.ranks)
                hook = _Adding(stack, scales[stack.ranks])
                handles.append(self._module.get_submodule(path).register_forward_hook(hook))
            yield True
        finally:
            for handle in handles:
                handle.remove()

    def _stacked(self, loras: Sequence[Lora]) -> Mapping[str, Stack]:
        mix = tuple(lora.digest for lora in loras)
        if len(loras) == 1:
            return _stacks([self._part(loras[0])])
        if mix != self._mix:
            self._mix, self._stacks = (), {}  # the old ones go before the new ones come
            self._mix, self._stacks = mix, _stacks([self._part(lora) for lora in loras])
        return self._stacks


def _stacks(parts: Sequence[Mapping[str, LowRank]]) -> dict[str, Stack]:
    stacks = {}
    for path in dict.fromkeys(path for part in parts for path in part):
        changes = [(place, part[path]) for place, part in enumerate(parts) if path in part]
        stacks[path] = Stack(
            _joined([change.down for _, change in changes], 0),
            _joined([change.up for _, change in changes], 1),
            tuple((place, change.rank, change.scale) for place, change in changes),
        )
    return stacks


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _weights(rows: Sequence[Sequence[Weighted]], loras: Sequence[Lora], device: torch.device) -> Tensor:
    """(rows, LoRAs): a LoRA that a row names twice has the sum of both weights."""
    place = {lora.digest: i for i, lora in enumerate(loras)}
    table = [[0.0] * len(loras) for _ in rows]
    for weights, row in zip(table, rows, strict=True):
        for lora, weight in row:
            if lora.digest in place:
                weights[place[lora.digest]] += weight
    return torch.tensor(table, dtype=torch.float32, device=device)


def _scale(weights: Tensor, ranks: Ranks) -> Tensor:
    """(rows, ranks): weight · alpha / rank, for each rank of a stack."""
    return torch.cat([(weights[:, place, None] * scale).expand(-1, rank) for place, rank, scale in ranks], 1)


class _Adding:
    """A forward hook: adds a stack's change to a layer's output, in place."""

    def __init__(self, stack: Stack, scale: Tensor) -> None:
        self._stack = stack
        self._scale = scale

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = inputs[0]
        down, up = self._stack.down.to(x.dtype), self._stack.up.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            h = layer._conv_forward(x, down, None)
            scale = self._scale[:, :, None, None]
            return output.add_(functional.conv2d(_scaled_(h, scale), up))
        scale = self._scale.reshape(len(x), *(1 for _ in x.shape[2:]), -1)
        return output.add_(functional.linear(_scaled_(functional.linear(x, down), scale), up))


def _scaled_(h: Tensor, scale: Tensor) -> Tensor:
    """h · scale, in place, and exactly 0 where the scale is: a neighbour's LoRA may overflow without harm."""
    return h.masked_fill_(scale == 0, 0.0).mul_(scale)
