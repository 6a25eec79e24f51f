"""Latents yet to be computed, for many rows at once.

Most samplers only add latents and multiply them with numbers. So they run on these as they would on tensors,
and what a step comes to is one factor for each tensor that went into it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Self

import torch
from torch import Tensor


class Combination:
    """Σ factor · tensor, of tensors of one shape.

    It has sums and differences, and products and quotients with numbers, which Python works out in float64.
    Whatever else is tried with it is a TypeError, so that no sampler can pass for linear that is not.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Tensor, float]) -> None:
        """Tensors are told apart by identity."""
        self.terms = terms

    @classmethod
    def of(cls, tensor: object) -> Self:
        """Raises TypeError unless it is a tensor."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a {type(tensor).__name__} is no latent")
        return cls({tensor: 1.0})

    @property
    def shape(self) -> torch.Size:
        return next(iter(self.terms)).shape

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, Combination):
            return NotImplemented
        terms = dict(self.terms)
        for tensor, factor in other.terms.items():
            terms[tensor] = terms.get(tensor, 0.0) + factor
        return type(self)(terms)

    def __sub__(self, other: Self) -> Self:
        return self + -other if isinstance(other, Combination) else NotImplemented

    def __neg__(self) -> Self:
        return self * -1.0

    def __mul__(self, number: float) -> Self:
        if not isinstance(number, float | int):
            return NotImplemented
        return type(self)({tensor: factor * number for tensor, factor in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> Self:
        if not isinstance(number, float | int):
            return NotImplemented
        return type(self)({tensor: factor / number for tensor, factor in self.terms.items()})

    def __iter__(self) -> Iterator[Self]:
        """Of stacked latents, each by itself."""
        for latents in zip(*self.terms, strict=True):
            yield type(self)(dict(zip(latents, self.terms.values(), strict=True)))


def computed(rows: Sequence[Combination]) -> list[Tensor]:
    """What these come to. That tensor is from now on the one term of its row, so that sums do not grow.

    A product and a sum of all rows for the first terms, the second ones, and so on. Nothing is copied to the
    device or waited for. Each is rounded by itself, so no row's bits depend on what else is computed.
    """
    longest_first = sorted(filter(_is_due, rows), key=lambda row: len(row.terms), reverse=True)
    sums: list[Tensor] = []
    for terms in zip_longest(*(row.terms.items() for row in longest_first)):
        tensors, factors = zip(*filter(None, terms), strict=True)
        products = torch._foreach_mul(tensors, factors)
        if sums:
            torch._foreach_add_(sums[: len(products)], products)
        else:
            sums = list(products)
    for row, tensor in zip(longest_first, sums, strict=True):
        row.terms = {tensor: 1.0}
    return [next(iter(row.terms)) for row in rows]


def _is_due(row: Combination) -> bool:
    return list(row.terms.values()) != [1.0]
