"""A module in float32 for one call, where its own precision has overflowed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_float32(module: nn.Module, wanted: bool) -> Iterator[None]:
    """The module's weights are float32 inside, if that is `wanted`.

    Costs a copy of them. Afterwards they are where they were, to the address.
    """
    if not wanted:
        yield
        return
    own = {parameter: parameter.data for parameter in module.parameters()}
    try:
        for parameter, data in own.items():
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in own.items():
            parameter.data = data
