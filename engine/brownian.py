"""A Brownian path over noise levels, the same whatever is asked of it and in which order.

A tree of midpoints (Brownian bridges) in which every node has a random stream of its own, so a value
depends on the seed and the place alone. Its numbers are those of torchsde's `BrownianTree`, which the
original's pictures were made with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Randn = Callable[[int], Tensor]
"""A seed to a tensor of standard normal noise."""

_DIGITS = 6
"""Places are told apart to this many decimals; the tree is as deep as that takes, 24 levels for σ to 15."""
_REMEMBERED = 3
"""Values: a step's start, middle and end."""
_POOL_SIZE = 24
"""Of the seeds' entropy pool: another one gives other numbers."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A stretch of the path: W at both ends, and what it gains between them.

    The difference of the ends would be the gain, less exactly; a place has the same W in all its nodes.
    """

    start: float
    end: float
    at_start: Tensor
    at_end: Tensor
    gain: Tensor
    key: int = 0
    depth: int = 0


class BrownianPath:
    """W(σ) for σ_min ≤ σ ≤ σ_max, with W(σ_min) = 0.

    A value not asked for before costs one draw per level of the tree: 2 ms for a latent of 64 × 64.
    """

    def __init__(self, sigma_min: float, sigma_max: float, seed: int, randn: Randn) -> None:
        self._seed, self._randn = seed, randn
        start, end = _place(sigma_min), _place(sigma_max)
        whole = randn(self._seed_of()) * math.sqrt(end - start)
        self._path = [_Node(start, end, torch.zeros_like(whole), whole, whole)]
        self._known = {start: self._path[0].at_start}

    def noise(self, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal noise for the step from σ to σ′: the path's gain, over √|σ′ − σ|."""
        before = self(sigma)
        gain = self(sigma_next) - before
        return gain / math.sqrt(abs(float(np.float32(sigma_next) - np.float32(sigma))))

    def __call__(self, sigma: float) -> Tensor:
        place = _place(sigma)
        if place not in self._known:
            self._known = dict([*self._known.items()][1 - _REMEMBERED :])
            self._known[place] = self._value(place)
        return self._known[place]

    def _value(self, place: float) -> Tensor:
        """Walk down from the lowest node of the last walk that has the place in it."""
        while len(self._path) > 1 and not self._path[-1].start <= place <= self._path[-1].end:
            self._path.pop()
        node = self._path[-1]
        while node.start < place < node.end:
            node = self._half(node, place)
            self._path.append(node)
        return node.at_start if place <= node.start else node.at_end

    def _half(self, node: _Node, place: float) -> _Node:
        """The half of the node that has the place in it."""
        middle = round((node.start + node.end) / 2, _DIGITS)
        before, after, length = middle - node.start, node.end - middle, node.end - node.start
        bridge = self._randn(self._seed_of(node.key, node.depth)) * math.sqrt(before * after / length)
        gain = bridge.add_(node.gain, alpha=before / length)
        key, depth = 2 * node.key, node.depth + 1
        at_middle = node.at_start + gain
        if place <= middle:
            return _Node(node.start, middle, node.at_start, at_middle, gain, key, depth)
        return _Node(middle, node.end, at_middle, node.at_end, node.gain - gain, key + 1, depth)

    def _seed_of(self, *spawn_key: int) -> int:
        sequence = np.random.SeedSequence(self._seed, spawn_key=spawn_key, pool_size=_POOL_SIZE)
        return int(sequence.generate_state(1)[0])


def _place(sigma: float) -> float:
    """Noise levels were float32 where the pictures to reproduce were made."""
    return round(float(np.float32(sigma)), _DIGITS)
