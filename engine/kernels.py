"""What computes attention on a GPU: torch's own choice, one of its backends, or xformers; which is fastest.

A backend is called as itself, not by `torch.nn.attention.sdpa_kernel`: that sets flags of the whole process,
so of other threads too, at every call.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Query, key and value (n, heads, positions, width) -> (n, heads, queries, width), without a mask."""

TORCH = "torch"
MARGIN = 0.05
"""What another must be faster by than torch's own choice, so that noise does not decide."""
TOLERANCE = 1e-2
"""How far, in the largest value's share, a result may be from torch's: half precision's rounding."""
ROWS = 4
CALLS = 8
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Layer:
    """What attention's speed depends on. `crossed`: its keys are a prompt's tokens."""

    heads: int
    width: int
    queries: int
    crossed: bool

    @property
    def kind(self) -> "Kind":
        return self.width, self.crossed

    @property
    def keys(self) -> int:
        return 77 if self.crossed else self.queries


Kind = tuple[int, bool]
"""The width of a head, and whether the keys are a prompt's tokens: layers alike in both share a kernel."""


def _torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value)


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return attended


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]
    return attended


def _efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    attended: Tensor = attend(query, key, value, None, False)[0]
    return attended


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    swapped = (each.transpose(1, 2) for each in (query, key, value))
    attended: Tensor = memory_efficient_attention(*swapped)
    return attended.transpose(1, 2)


def kernels() -> dict[str, Kernel]:
    """By name, those that are installed; which of them run is the device's affair."""
    known: dict[str, Kernel] = {TORCH: _torch, "flash": _flash, "cudnn": _cudnn, "efficient": _efficient}
    return {**known, "xformers": _xformers} if find_spec("xformers") else known


def fastest(seconds: Mapping[str, float | None]) -> str:
    """The name of what took least: torch's own choice unless another is faster by MARGIN.

    None is the time of what does not run, or not right.
    """
    own = seconds[TORCH]
    assert own is not None
    run = {name: taken for name, taken in seconds.items() if taken is not None}
    best = min(run, key=run.__getitem__)
    return best if run[best] < (1 - MARGIN) * own else TORCH


def choose(layers: Iterable[Layer], like: Tensor, name: str = "auto") -> dict[Kind, str]:
    """For each kind of layer the name of its kernel; "auto" measures them, where and as the tensor is.

    That takes under a second, and the memory of a layer's call of ROWS rows. Of a kind of several sizes the
    largest counts. On a CPU it is torch's own.
    """
    largest = {layer.kind: layer for layer in sorted(layers, key=lambda layer: layer.queries)}
    if name == "auto" and like.device.type == "cuda":
        return {kind: fastest(measure(layer, like)) for kind, layer in largest.items()}
    return dict.fromkeys(largest, TORCH if name == "auto" else name)


@torch.inference_mode()
def measure(layer: Layer, like: Tensor) -> dict[str, float | None]:
    """Seconds of a call of each kernel; None for one that does not run, or not right."""
    made = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(ROWS, positions, layer.heads, layer.width, generator=made).to(like).transpose(1, 2)
        for positions in (layer.queries, layer.keys, layer.keys)
    )
    right = _torch(query, key, value).float()
    return {name: _seconds(kernel, (query, key, value), right) for name, kernel in kernels().items()}


def _seconds(kernel: Kernel, inputs: Any, right: Tensor) -> float | None:
    """None for one that does not take these inputs, or answers something else than torch's."""
    try:
        error = (kernel(*inputs).float() - right).abs().max() / right.abs().max()
        if not error <= TOLERANCE:
            return None
        return statistics.median(_timed(kernel, inputs) for _ in range(REPEATS))
    except (RuntimeError, TypeError, ValueError):  # each library has its own way to refuse
        return None


def _timed(kernel: Kernel, inputs: Any) -> float:
    _wait(inputs[0])
    began = time.perf_counter()
    for _ in range(CALLS):
        kernel(*inputs)
    _wait(inputs[0])
    return (time.perf_counter() - began) / CALLS


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
