"""A UNet's calls recorded on the device and replayed, without a launch of each kernel: CUDA graphs."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.row_counts import RowCounts
from engine.unet import Call, Inputs


@dataclass(frozen=True, slots=True)
class Recording:
    """`replay` computes `output` anew, in place."""

    replay: Callable[[], object]
    output: Tensor


class Recorder(Protocol):
    def record(self, call: Callable[[], Tensor]) -> Recording:
        """Of a call that always reads the same memory. Raises torch.OutOfMemoryError."""
        ...


class CudaRecorder:
    """One for each device and process. Its recordings share a pool of memory, so one replays at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, call: Callable[[], Tensor]) -> Recording:
        """Other threads may use the device meanwhile."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            call()  # what libraries do at the first call of a shape cannot be recorded
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = call()
        return Recording(graph.replay, output)


class Rerunning:
    """Where there are no graphs: replaying is calling again. For checks of all that is around them."""

    def record(self, call: Callable[[], Tensor]) -> Recording:
        output = call()
        return Recording(lambda: output.copy_(call()), output)


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: Inputs
    recording: Recording


class Graphs:
    """Is called as a UNet is, and replays. The answer holds until the next call.

    A recording is for one number of rows, of `row_counts`, and one shape of what a row has; rows up to that
    number are copies of the first one, and their results are left out. A shape is recorded at its second
    call, which evaluates once more for that; the first one, and calls of more rows than the largest number,
    go the plain way. Of more than `most` shapes those used least lately are forgotten, and half of all when
    there is no memory for another.

    A recording reads the weights where they were. The call must not depend on anything else that changes.
    """

    def __init__(self, call: Call, recorder: Recorder, row_counts: RowCounts, *, most: int = 64) -> None:
        self._call = call
        self._recorder = recorder
        self._row_counts = row_counts
        self._most = most
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def __len__(self) -> int:
        """How many shapes are recorded."""
        return len(self._recorded)

    def __call__(self, inputs: Inputs) -> Tensor:
        rows, _, height, width = inputs.x.shape
        count = self._row_counts.at_least(rows, height * width)
        if count is None or not self._most:
            return self._call(inputs)
        recorded = self._of(_shape(inputs, count), inputs, count)
        if recorded is None:
            return self._call(_filled_up(inputs, count))[:rows]
        for static, own in zip(recorded.inputs, inputs, strict=True):
            if static is not None and own is not None:
                static[:rows] = own
                static[rows:] = own[:1]
        recorded.recording.replay()
        return recorded.recording.output[:rows]

    def _of(self, shape: Hashable, inputs: Inputs, count: int) -> _Recorded | None:
        """None at a shape's first call, and if there is no memory for it."""
        if shape in self._recorded:
            self._recorded.move_to_end(shape)
            return self._recorded[shape]
        if shape not in self._seen:
            self._seen[shape] = None
            _keep(self._seen, self._most)
            return None
        _keep(self._recorded, self._most - 1)
        static = _filled_up(inputs, count)
        try:
            recorded = _Recorded(static, self._recorder.record(partial(self._call, static)))
        except torch.OutOfMemoryError:
            self._most = len(self._recorded) // 2
            _keep(self._recorded, self._most)
            return None
        del self._seen[shape]
        self._recorded[shape] = recorded
        return recorded


def _keep(newest: OrderedDict[Hashable, Any], most: int) -> None:
    while len(newest) > most:
        newest.popitem(last=False)


def _shape(inputs: Inputs, count: int) -> Hashable:
    return count, tuple(None if each is None else (each.shape[1:], each.dtype) for each in inputs)


def _filled_up(inputs: Inputs, count: int) -> Inputs:
    """Copies, with the first row again and again behind the others."""
    missing = count - len(inputs.x)
    return Inputs._make(
        None if each is None else torch.cat([each, each[:1].expand(missing, *each.shape[1:])])
        for each in inputs
    )
