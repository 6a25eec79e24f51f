"""NVIDIA's normals: the published values of seed 0."""

import pytest
import torch

from engine.philox import Philox

PUBLISHED = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


def test_seed_0_gives_the_published_values() -> None:
    assert torch.allclose(Philox(0).randn((3, 4)), torch.tensor(PUBLISHED), atol=1e-6, rtol=0)


def test_a_value_depends_on_its_place_in_the_tensor_and_not_on_the_size() -> None:
    assert torch.equal(Philox(7).randn((5,)), Philox(7).randn((4, 64, 64)).flatten()[:5])


def test_every_tensor_drawn_is_another() -> None:
    stream = Philox(7)
    first, second = stream.randn((4, 8, 8)), stream.randn((4, 8, 8))
    assert not torch.equal(first, second)
    assert torch.equal(first, Philox(7).randn((4, 8, 8)))


def test_all_64_bits_of_the_seed_count() -> None:
    draws = [Philox(seed).randn((4,)) for seed in (1, 1 + 2**32, 1 + 2**63, 2)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_values_are_standard_normal() -> None:
    values = Philox(3).randn((400, 500))
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert bool(values.isfinite().all())
