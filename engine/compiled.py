"""A UNet's call compiled, once for all UNets of an architecture, and only while it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine.unet import Inputs, evaluate

MOST_SHAPES = 256
"""How many compiled forms torch keeps of one function, where it would stop at 8."""


class Compiled:
    """Calls UNets: by compiled code for what was called inside `compiling`, else in the plain way.

    That serves other weights too, and other UNets of the same architecture. The thread must have as many CPU
    threads as the one that compiled, and its mode of inference.
    """

    def __init__(self, mode: str, *, backend: str = "inductor") -> None:
        """`mode` and `backend` are torch.compile's."""
        torch._dynamo.config.recompile_limit = MOST_SHAPES
        self._evaluate = torch.compile(evaluate, fullgraph=True, dynamic=False, mode=mode, backend=backend)
        self._stance = "eager_on_recompile"

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Calls of new shapes compile inside, which takes minutes each for a large UNet."""
        self._stance = "default"
        try:
            yield
        finally:
            self._stance = "eager_on_recompile"

    def __call__(self, unet: nn.Module, inputs: Inputs) -> Tensor:
        with torch.compiler.set_stance(self._stance):
            return self._evaluate(unet, inputs)
