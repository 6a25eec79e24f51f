"""A folder of .safetensors files that clients name: what is in it now, and by which name."""

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from engine.protocol import CheckpointError

RESCAN_SECONDS = 5.0
"""How often an unknown name may have the folder looked through again."""

Version = tuple[Path, int, int]
"""A file as it is now: path, mtime in nanoseconds, size."""

Described = TypeVar("Described")


def version(path: Path) -> Version:
    """Raises OSError for a file that is not there."""
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


class Folder(Generic[Described]):
    """Any thread may ask. Folders below it count too; without a folder there are no files.

    `describe` is asked about each file that is new or changed, by its path and its name in the folder, and
    `names` which names all of them have. `kind` is what the files are, for errors: raises CheckpointError if
    there is no such folder.
    """

    def __init__(
        self,
        folder: Path | None,
        kind: str,
        describe: Callable[[Path, str], Described],
        names: Callable[[Mapping[Path, Described]], Mapping[str, Path]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if folder and not folder.is_dir():
            raise CheckpointError(f"there is no folder {folder.name} for {kind} where it is said to be")
        self._folder = folder
        self._describe = describe
        self._named = names
        self._clock = clock
        self._described: Mapping[Version, Described] = {}
        self._paths: Mapping[str, Path] = {}
        self.refresh()

    def find(self, name: str) -> Path | None:
        """None for an unknown name."""
        if name not in self._paths:
            self.refresh_if_old()
        return self._paths.get(name)

    def names(self) -> Collection[str]:
        """All that there are, as of the last look."""
        return self._paths.keys()

    def listing(self) -> list[Described]:
        return list(self._described.values())

    def refresh_if_old(self) -> None:
        if self._clock() - self._scanned > RESCAN_SECONDS:
            self.refresh()

    def refresh(self) -> None:
        """Look through the folder again."""
        self._scanned = self._clock()
        if self._folder is None:
            return
        before = self._described
        found: dict[Version, Described] = {}
        for path in sorted(self._folder.rglob("*.safetensors")):
            try:
                now = version(path)
                found[now] = before[now] if now in before else self._describe(path, self._inside(path))
            except OSError:
                continue  # gone again, or not ours to read
        self._described = found
        self._paths = self._named({path: described for (path, *_), described in found.items()})

    def _inside(self, path: Path) -> str:
        assert self._folder is not None
        return path.relative_to(self._folder).as_posix()
