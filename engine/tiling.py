"""Pictures whose edges fit one another: a module's convolutions see the opposite edge beyond each."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def circular(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, convolutions that pad do so with the opposite edge, if that is `wanted`."""
    if not wanted:
        yield
        return
    padding = [m for m in module.modules() if isinstance(m, nn.Conv2d) and any(m.padding)]
    try:
        for convolution in padding:
            convolution.padding_mode = "circular"
        yield
    finally:
        for convolution in padding:
            convolution.padding_mode = "zeros"
