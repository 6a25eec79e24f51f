"""A folder's LoRAs by name: loaded once, kept while they fit in a budget of bytes."""

import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.lora.file import Layer, Lora, load, plan, tensor_file
from engine.protocol import CheckpointError, JobFailed, LoraError, LoraFile, OutOfMemory

MAX_METADATA_CHARS = 1000
"""Longer values of a header are not listed: trainers write the tags of all their pictures there."""
RESCAN_SECONDS = 5.0
"""How often an unknown name may have the folder looked through again."""

Version = tuple[Path, int, int]
"""A file as it is now: path, mtime in nanoseconds, size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """`max_bytes` bounds what is kept loaded. `strict`: an unknown name fails its job, instead of warning."""

    folder: Path | None = None
    max_bytes: int = 2**30
    strict: bool = False


class LoraStore:
    """Any thread may ask. Only a load, of which there is one at a time, makes another caller wait.

    `layers` are the checkpoint's by the names that files have for them. Beyond the settings' bytes, what was
    used least lately goes, but never what a row still holds: then the budget is exceeded instead. Raises
    CheckpointError if there is no such folder.
    """

    def __init__(
        self,
        settings: LoraSettings,
        layers: Mapping[str, Layer],
        *,
        device: torch.device,
        dtype: torch.dtype,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.strict = settings.strict
        if settings.folder and not settings.folder.is_dir():
            raise CheckpointError(
                f"there is no folder {settings.folder.name} for LoRAs where it is said to be"
            )
        self._folder = settings.folder
        self._max_bytes = settings.max_bytes
        self._layers = layers
        self._device = device
        self._dtype = dtype
        self._clock = clock
        self._paths: Mapping[str, Path] = {}
        self._listed: Mapping[Version, LoraFile] = {}
        self._scanned = clock()
        self._loaded: OrderedDict[Version, Lora] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self.refresh()

    def get(self, name: str) -> Lora | None:
        """The LoRA of this name, loaded if need be; None for an unknown name.

        Raises LoraError for a file that cannot be used here.
        """
        path = self._paths.get(name)
        if path is None and self._clock() - self._scanned > RESCAN_SECONDS:
            self.refresh()
            path = self._paths.get(name)
        try:
            return None if path is None else self._current(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JobFailed(f"LoRA {name!r} cannot be read ({type(error).__name__})") from None

    def listing(self) -> list[LoraFile]:
        """What may be asked for, by file name."""
        return sorted(self._listed.values(), key=lambda listed: listed.name.casefold())

    def refresh(self) -> None:
        """Look through the folder again. Headers are read of files that are new or changed."""
        if self._folder is None:
            return
        self._scanned = self._clock()
        found: dict[Version, LoraFile] = {}
        for path in sorted(self._folder.rglob("*.safetensors")):
            try:
                version = _version(path)
                found[version] = self._listed.get(version) or self._read_listed(path)
            except OSError:
                continue  # gone again, or not ours to read
        self._listed = found
        self._paths = _names({version[0]: listed for version, listed in found.items()})

    def _read_listed(self, path: Path) -> LoraFile:
        assert self._folder is not None
        metadata: Mapping[str, str] = {}
        try:
            with path.open("rb") as file:
                metadata = tensor_file(file, path.stem).header.metadata
        except LoraError:
            pass  # it is listed, and refused with the reason when it is asked for
        filename = path.relative_to(self._folder).as_posix()
        short = {key: text for key, text in metadata.items() if len(text) <= MAX_METADATA_CHARS}
        alias = metadata.get("ss_output_name") or path.stem
        return LoraFile(name=path.stem, alias=alias, filename=filename, metadata=short)

    def _current(self, path: Path) -> Lora:
        version = _version(path)
        if (lora := self._use(version)) is not None:
            return lora
        with self._loading:
            if (lora := self._use(version)) is None:
                lora = self._load(path)
                self._keep(version, lora)
            return lora

    def _use(self, version: Version) -> Lora | None:
        with self._lock:
            if version in self._loaded:
                self._loaded.move_to_end(version)
            return self._loaded.get(version)

    def _load(self, path: Path) -> Lora:
        name = path.stem
        with path.open("rb") as opened:
            file = tensor_file(opened, name)
            planned = plan(file.header, self._layers, name)
            needed = planned.numbers * self._dtype.itemsize
            if needed > self._max_bytes:
                raise LoraError(
                    f"LoRA {name!r} needs {needed / 2**20:.0f} MiB of the {self._max_bytes / 2**20:.0f} MiB "
                    "that LoRAs may take"
                )
            try:
                return load(file, planned, name, device=self._device, dtype=self._dtype)
            except torch.OutOfMemoryError:
                raise OutOfMemory(f"LoRA {name!r} does not fit in the device's memory now") from None

    def _keep(self, version: Version, lora: Lora) -> None:
        with self._lock:
            for other in [other for other in self._loaded if other[0] == version[0]]:
                del self._loaded[other]  # the file's former content
            self._loaded[version] = lora
            excess = sum(lora.bytes for lora in self._loaded.values()) - self._max_bytes
            for oldest in list(self._loaded):
                if excess <= 0:
                    break
                excess -= self._evict(oldest)

    def _evict(self, version: Version) -> int:
        """Bytes freed: 0 where somebody holds the LoRA, for then it stays.

        What nobody holds is freed at its last reference, as CPython does.
        """
        bytes_ = self._loaded[version].bytes
        held = weakref.ref(self._loaded.pop(version))
        if (lora := held()) is None:
            return bytes_
        self._loaded[version] = lora
        return 0


def _version(path: Path) -> Version:
    stat = path.stat()
    return path, stat.st_mtime_ns, stat.st_size


def _names(files: Mapping[Path, LoraFile]) -> dict[str, Path]:
    """Stems, which win, and the aliases that are no two files', whatever their letter case."""
    stems: dict[str, Path] = {}
    for path, listed in files.items():
        stems.setdefault(listed.name, path)
    shared = Counter(listed.alias.casefold() for listed in files.values())
    aliases = {
        listed.alias: path
        for path, listed in files.items()
        if shared[listed.alias.casefold()] == 1 and listed.alias.casefold() != "none"
    }
    return aliases | stems
