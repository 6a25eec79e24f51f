"""What was loaded of files, kept within a budget of bytes."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from engine.folder import Version, version


class Sized(Protocol):
    @property
    def bytes(self) -> int: ...


Loaded = TypeVar("Loaded", bound=Sized)


class Cache(Generic[Loaded]):
    """Any thread may ask. Only a load, of which there is one at a time, makes another caller wait.

    Beyond `max_bytes`, what was used least lately goes, but never what somebody still holds: then the budget
    is exceeded instead.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[Version, Loaded] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def get(self, path: Path, load: Callable[[Path], Loaded]) -> Loaded:
        """What `load` made of the file as it is now. Raises OSError if it is gone, and what `load` raises."""
        now = version(path)
        if (loaded := self._use(now)) is not None:
            return loaded
        with self._loading:
            if (loaded := self._use(now)) is None:
                loaded = load(path)
                self._keep(now, loaded)
            return loaded

    def _use(self, now: Version) -> Loaded | None:
        with self._lock:
            if now in self._loaded:
                self._loaded.move_to_end(now)
            return self._loaded.get(now)

    def _keep(self, now: Version, loaded: Loaded) -> None:
        with self._lock:
            for other in [other for other in self._loaded if other[0] == now[0]]:
                del self._loaded[other]  # the file's former content
            self._loaded[now] = loaded
            excess = sum(each.bytes for each in self._loaded.values()) - self._max_bytes
            for oldest in list(self._loaded):
                if excess <= 0:
                    break
                excess -= self._evict(oldest)

    def _evict(self, oldest: Version) -> int:
        """Bytes freed: 0 where somebody holds what was loaded, for then it stays.

        What nobody holds is freed at its last reference, as CPython does.
        """
        bytes_ = self._loaded[oldest].bytes
        held = weakref.ref(self._loaded.pop(oldest))
        if (loaded := held()) is None:
            return bytes_
        self._loaded[oldest] = loaded
        return 0
