"""Checkpoints that a replica loads besides its own: for a second pass, or as a refiner."""

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint import LoadedCheckpoint
from engine.protocol import CheckpointError, InvalidJob, JobFailed

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
        self, paths: Mapping[str, Path], load: Callable[[Path], LoadedCheckpoint], *, max_bytes: int
    ) -> None:
        self._paths = paths
        self._load = load
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._turn = threading.Lock()

    def get(self, name: str, field: str) -> tuple[LoadedCheckpoint, Lease]:
        """Raises InvalidJob, naming `field`, for an unknown name, and JobFailed for a file that is bad."""
        if name not in self._paths:
            known = ", ".join(map(repr, self._paths)) or "none"
            raise InvalidJob(
                f"{field}: {name!r} is not one that this checkpoint's jobs can also use: {known}"
            )
        with self._turn:
            if name not in self._loaded:
                self._loaded[name] = _Loaded(self._read(name), weakref.WeakSet())
            self._loaded.move_to_end(name)
            loaded, lease = self._loaded[name], Lease()
            loaded.leases.add(lease)
        return loaded.checkpoint, lease

    def _read(self, name: str) -> LoadedCheckpoint:
        path = self._paths[name]
        try:
            self._make_room(path.stat().st_size)
            return self._load(path)
        except CheckpointError as error:
            raise JobFailed(f"The checkpoint {name!r} cannot be used: {error.message}") from None
        except OSError as error:
            raise JobFailed(f"The checkpoint {name!r} cannot be read ({type(error).__name__})") from None

    def _make_room(self, needed: int) -> None:
        """Returns when so many bytes fit, or nothing else is loaded."""
        while self._loaded and needed + self._bytes() > self._max_bytes:
            idle = next((name for name, loaded in self._loaded.items() if not loaded.leases), None)
            if idle is None:
                time.sleep(POLL_SECONDS)
            else:
                del self._loaded[idle]

    def _bytes(self) -> int:
        return sum(loaded.checkpoint.bytes for loaded in self._loaded.values())
