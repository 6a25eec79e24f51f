"""The Brownian path is torchsde's, whatever is asked of it and in which order."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.brownian import BrownianPath

SHAPE = (4, 8, 8)
LOW, HIGH = 0.029167, 14.614641


def randn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def path(seed: int = 0) -> BrownianPath:
    return BrownianPath(LOW, HIGH, seed, randn)


@pytest.mark.parametrize("seed", [0, 1234, 2**40])
@pytest.mark.parametrize("bounds", [(LOW, HIGH), (0.1, 2.0)])
def test_the_values_are_torchsdes(seed: int, bounds: tuple[float, float]) -> None:
    low, high = (torch.tensor(bound) for bound in bounds)
    tree = torchsde.BrownianTree(low, torch.zeros(SHAPE), high + 2e-6, entropy=seed)
    ours = BrownianPath(float(low), float(high + 2e-6), seed, randn)
    sigmas = np.geomspace(float(high), float(low) + 1e-6, 21).astype(np.float32)
    for sigma, sigma_next in pairwise(sigmas):
        gain = -tree(float(sigma_next), float(sigma))
        theirs = gain / math.sqrt(float(sigma - sigma_next))
        error = (ours.noise(float(sigma), float(sigma_next)) - theirs).norm() / theirs.norm()
        assert float(error) < 2e-6


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(LOW, HIGH), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_value_does_not_depend_on_what_was_asked_before(places: list[float], order: random.Random) -> None:
    asked = path()
    values = {place: asked(place).clone() for place in places}
    again = path()
    for place in order.sample(places, len(places)):
        assert torch.equal(again(place), values[place])
        assert torch.equal(path()(place), values[place])


def test_steps_that_overlap_share_their_noise() -> None:
    walk = path()
    whole = walk.noise(10.0, 4.0) * math.sqrt(6)
    parts = walk.noise(10.0, 7.0) * math.sqrt(3) + walk.noise(7.0, 4.0) * math.sqrt(3)
    assert torch.allclose(whole, parts, atol=1e-4)


def test_noise_is_standard_normal_and_independent_where_steps_do_not_overlap() -> None:
    walk = BrownianPath(
        LOW, HIGH, 3, lambda s: torch.randn(200_000, generator=torch.Generator().manual_seed(s))
    )
    noises = [walk.noise(a, b) for a, b in ((14.0, 9.0), (9.0, 1.0), (1.0, 0.9), (0.9, 0.0292))]
    correlations = np.corrcoef(np.stack([noise.numpy() for noise in noises]))
    assert np.abs(correlations - np.eye(4)).max() < 0.01
    for noise in noises:
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_the_seed_decides() -> None:
    assert not torch.equal(path(0)(5.0), path(1)(5.0))
    assert torch.equal(path(1)(5.0), path(1)(5.0))
