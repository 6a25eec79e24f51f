"""Checkpoints that a replica loads besides its own: for a second pass, or as a refiner."""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.checkpoint import LoadedCheckpoint, read_kind, swap_checkpoint
from engine.nearest import nearest
from engine.protocol import CheckpointError, CheckpointLost, FolderKind, InvalidJob, JobFailed, OutOfMemory

POLL_SECONDS = 0.02


class Lease:
    """While this lives, what was lent with it stays loaded."""

    __slots__ = ("__weakref__",)


@dataclass(slots=True)
class _Loaded:
    checkpoint: LoadedCheckpoint
    leases: "weakref.WeakSet[Lease]"


class Companions:
    """Loads named files when they are asked for; beyond `max_bytes` what was used least lately goes.

    Any thread may ask. Who asks for one that is not loaded, while those that are leave no room and are all in
    use, waits until one is not; who comes later waits behind. A single one larger than all may be alone.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        load: Callable[[Path], LoadedCheckpoint],
        swap: Callable[[LoadedCheckpoint, Path], LoadedCheckpoint] = swap_checkpoint,
        *,
        max_bytes: int,
    ) -> None:
        self._paths = paths
        self._load = load
        self._swap = swap
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._turn = threading.Lock()

    def get(self, name: str, field: str) -> tuple[LoadedCheckpoint, Lease]:
        """Raises InvalidJob, naming `field`, for an unknown name, and JobFailed for a file that is bad."""
        if name not in self._paths:
            known = ", ".join(map(repr, self._paths)) or "none"
            raise InvalidJob(
                f"{field}: {name!r} is not one that this checkpoint's jobs can also use: {known}."
                f"{nearest(name, self._paths)}"
            )
        with self._turn:
            if name not in self._loaded:
                self._loaded[name] = _Loaded(self._read(name), weakref.WeakSet())
            self._loaded.move_to_end(name)
            loaded, lease = self._loaded[name], Lease()
            loaded.leases.add(lease)
        return loaded.checkpoint, lease

    def refresh(self, kind: FolderKind) -> None:
        """Have those that are loaded look through their folders again."""
        with self._turn:
            for loaded in self._loaded.values():
                loaded.checkpoint = loaded.checkpoint.refreshed(kind)

    def _read(self, name: str) -> LoadedCheckpoint:
        try:
            return self._placed(self._paths[name])
        except (CheckpointError, CheckpointLost) as error:
            raise JobFailed(f"The checkpoint {name!r} cannot be used: {error.message}") from None
        except OSError as error:
            raise JobFailed(f"The checkpoint {name!r} cannot be read ({type(error).__name__})") from None
        except torch.OutOfMemoryError:
            raise OutOfMemory(f"The checkpoint {name!r} does not fit in the device's memory now") from None

    def _placed(self, path: Path) -> LoadedCheckpoint:
        """Loaded where there is room, or into the modules of one that is idle and of the same architecture.

        A file whose header is bad puts nobody out.
        """
        kind, size = read_kind(path), path.stat().st_size
        while self._loaded and size + self._bytes() > self._max_bytes:
            idle = [name for name, loaded in self._loaded.items() if not loaded.leases]
            alike = [name for name in idle if self._loaded[name].checkpoint.kind.same_modules(kind)]
            if alike:
                return self._swap(self._loaded.pop(alike[0]).checkpoint, path)
            if idle:
                del self._loaded[idle[0]]
            else:
                time.sleep(POLL_SECONDS)
        return self._load(path)

    def _bytes(self) -> int:
        return sum(loaded.checkpoint.bytes for loaded in self._loaded.values())
