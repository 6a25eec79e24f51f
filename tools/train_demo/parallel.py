"""Several worker processes of one thread each that train one model together.

Kernels this small gain little from a second thread; a second worker nearly doubles the speed.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def launch(main: Callable[[int], None], workers: int) -> None:
    """Runs `main(rank)` in `workers` processes, or right here if there is but one."""
    if workers == 1:
        main(0)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = (main, workers, str(Path(folder) / "meet"))
        spawn: Any = multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_worker, args=arguments, nprocs=workers)


def _worker(rank: int, main: Callable[[int], None], workers: int, meet: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=workers)
    main(rank)
    distributed.destroy_process_group()


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.Tensor], value: float) -> float:
    """Replaces all gradients, and `value`, by their mean over the workers."""
    return _average([p.grad for p in parameters if p.grad is not None], value)


@torch.no_grad()
def average_parameters(parameters: Iterable[torch.Tensor], value: float) -> float:
    """Replaces all trained parameters, and `value`, by their mean over the workers."""
    return _average([p for p in parameters if p.requires_grad], value)


def _average(tensors: list[torch.Tensor], value: float) -> float:
    if not distributed.is_initialized():
        return value
    flat = torch.cat([t.flatten() for t in tensors] + [torch.tensor([value])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, part in zip(tensors, torch.split(flat[:-1], [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
    return flat[-1].item()
