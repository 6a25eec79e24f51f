"""A folder's LoRAs by name: loaded once, kept while they fit in a budget of bytes."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.cache import Cache
from engine.folder import Folder
from engine.lora.file import Layer, Lora, load, plan, tensor_file
from engine.protocol import JobFailed, LoraError, LoraFile, OutOfMemory

MAX_METADATA_CHARS = 1000
"""Longer values of a header are not listed: trainers write the tags of all their pictures there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """`max_bytes` bounds what is kept loaded. `strict`: an unknown name fails its job, instead of warning."""

    folder: Path | None = None
    max_bytes: int = 2**30
    strict: bool = False


class LoraStore:
    """Any thread may ask. Only a load, of which there is one at a time, makes another caller wait.

    `layers` are the checkpoint's by the names that files have for them. Raises CheckpointError if there is no
    such folder.
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
        self._max_bytes = settings.max_bytes
        self._layers = layers
        self._device = device
        self._dtype = dtype
        self._folder = Folder(settings.folder, "LoRAs", _described, _names, clock)
        self._cache: Cache[Lora] = Cache(settings.max_bytes)

    def get(self, name: str) -> Lora | None:
        """The LoRA of this name, loaded if need be; None for an unknown name.

        Raises LoraError for a file that cannot be used here.
        """
        path = self._folder.find(name)
        try:
            return None if path is None else self._cache.get(path, self._load)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JobFailed(f"LoRA {name!r} cannot be read ({type(error).__name__})") from None

    def names(self) -> Collection[str]:
        """By which prompts may name them."""
        return self._folder.names()

    def listing(self) -> list[LoraFile]:
        """What may be asked for, by file name."""
        return sorted(self._folder.listing(), key=lambda listed: listed.name.casefold())

    def refresh(self) -> None:
        """Look through the folder again. Headers are read of files that are new or changed."""
        self._folder.refresh()

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


def _described(path: Path, filename: str) -> LoraFile:
    metadata: Mapping[str, str] = {}
    try:
        with path.open("rb") as file:
            metadata = tensor_file(file, path.stem).header.metadata
    except LoraError:
        pass  # it is listed, and refused with the reason when it is asked for
    short = {key: text for key, text in metadata.items() if len(text) <= MAX_METADATA_CHARS}
    alias = metadata.get("ss_output_name") or path.stem
    return LoraFile(name=path.stem, alias=alias, filename=filename, metadata=short)


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
