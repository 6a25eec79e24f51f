"""Latents that are computed for many rows at once, each as if it were alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.samplers.combination import Combination, computed

SHAPE = (4, 7, 5)
"""Of no whole number of vectors."""


def latent(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def row_of(count: int, seed: int) -> Combination:
    """A sum of so many terms."""
    total = Combination.of(latent(seed)) * 0.3
    for i in range(1, count):
        total = total + Combination.of(latent(100 * seed + i)) * (0.7 - i / 3)
    return total


def bits(tensor: Tensor) -> list[int]:
    return tensor.view(torch.int32).flatten().tolist()


def test_a_row_comes_to_what_tensors_come_to() -> None:
    a, b, c = (latent(seed).double() for seed in range(3))
    x, y, z = map(Combination.of, (a, b, c))
    (ours,) = computed([-(x - y / 3) * 0.5 + 2 * (z - x) - z])
    assert torch.allclose(ours, -(a - b / 3) * 0.5 + 2 * (c - a) - c, rtol=1e-14, atol=1e-14)


def test_factors_of_one_tensor_are_added() -> None:
    x, y = Combination.of(latent(1)), Combination.of(latent(2))
    assert list((y + (x - y) * 0.25).terms.values()) == [0.75, 0.25]


def test_a_tensor_by_itself_is_not_computed() -> None:
    tensor = latent(1)
    assert computed([Combination.of(tensor)])[0] is tensor


def test_what_was_computed_is_one_term_of_all_that_follows() -> None:
    row = row_of(5, seed=1)
    before = dict(row.terms)
    (tensor,) = computed([row])
    assert (row * 2).terms == {tensor: 2.0}
    expected = sum((t * factor for t, factor in before.items()), torch.zeros(SHAPE))
    assert torch.allclose(tensor, expected, atol=1e-6)


def test_a_stack_comes_apart() -> None:
    pair = torch.stack([latent(1), latent(2)])
    first, second = Combination.of(pair) * 0.5
    assert torch.equal(computed([second])[0], latent(2) * 0.5)
    assert torch.equal(computed([first])[0], latent(1) * 0.5)


def not_finite() -> Combination:
    return Combination.of(torch.full(SHAPE, math.nan)) - Combination.of(torch.full(SHAPE, math.inf)) * 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_bit_of_a_row_depends_on_its_neighbours(count: int) -> None:
    (alone,) = computed([row_of(count, seed=1)])
    assert alone.isfinite().all()
    for neighbours in ([row_of(8, seed=2)], [not_finite()], [row_of(i, seed=i) for i in range(1, 8)]):
        assert bits(computed([row_of(count, seed=1), *neighbours])[0]) == bits(alone)
        assert bits(computed([*neighbours, row_of(count, seed=1)])[-1]) == bits(alone)


X: Any = Combination.of(latent(1))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: X * X,
        lambda: X / X,
        lambda: 1.0 / X,
        lambda: X**2,
        lambda: X + 1.0,
        lambda: 1.0 - X,
        lambda: X + latent(2),
        lambda: latent(2) - X,
        lambda: X * torch.tensor(2.0),
        lambda: torch.tensor(2.0) * X,
        lambda: X > X,
        lambda: abs(X),
        lambda: float(X),
        lambda: torch.exp(X),
    ],
)
def test_what_is_not_linear_is_a_type_error(attempt: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        attempt()
