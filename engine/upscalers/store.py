"""A folder's upscalers by name: loaded once, kept while they fit in a budget of bytes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from engine.cache import Cache
from engine.folder import Folder
from engine.protocol import JobFailed, OutOfMemory, UpscalerError, UpscalerFile
from engine.upscalers.upscaler import Upscaler, load, read_layout

KNOWN: Mapping[str, str] = MappingProxyType(
    {
        "realesrgan_x4plus": "R-ESRGAN 4x+",
        "realesrgan_x4plus_anime_6b": "R-ESRGAN 4x+ Anime6B",
        "realesrgan_x2plus": "R-ESRGAN 2x+",
        "realesr-general-x4v3": "R-ESRGAN General 4xV3",
        "realesr-general-wdn-x4v3": "R-ESRGAN General WDN 4xV3",
        "realesr-animevideov3": "R-ESRGAN AnimeVideo",
    }
)
"""What AUTOMATIC1111's clients call Real-ESRGAN's published files, by their stems in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerSettings:
    """`max_bytes` bounds what is kept loaded."""

    folder: Path | None = None
    max_bytes: int = 2**29


class UpscalerStore:
    """Any thread may ask. Only a load, of which there is one at a time, makes another caller wait.

    Networks run in `dtype`, on a CPU in float32. Raises CheckpointError if there is no such folder.
    """

    def __init__(
        self,
        settings: UpscalerSettings,
        *,
        device: torch.device,
        dtype: torch.dtype,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = settings.max_bytes
        self._device = device
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._folder = Folder(settings.folder, "upscalers", _described, _names, clock)
        self._cache: Cache[Upscaler] = Cache(settings.max_bytes)

    def get(self, name: str) -> Upscaler | None:
        """The upscaler of this name, loaded if need be; None for an unknown name.

        Raises UpscalerError for a file that cannot be used.
        """
        path = self._folder.find(name)
        try:
            return None if path is None else self._cache.get(path, self._load)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JobFailed(f"upscaler {name!r} cannot be read ({type(error).__name__})") from None

    def listing(self) -> list[UpscalerFile]:
        """What may be asked for, by name. Looks through the folder again if that is seconds ago."""
        self._folder.refresh_if_old()
        usable = [file for file in self._folder.listing() if file is not None]
        return sorted(usable, key=lambda file: file.name.casefold())

    def _load(self, path: Path) -> Upscaler:
        try:
            return load(path, device=self._device, dtype=self._dtype, max_bytes=self._max_bytes)
        except torch.OutOfMemoryError:
            raise OutOfMemory(f"upscaler {path.stem!r} does not fit in the device's memory now") from None


def _described(path: Path, filename: str) -> UpscalerFile | None:
    """None for a file that cannot be used."""
    try:
        scale = read_layout(path).network.scale
    except UpscalerError:
        return None
    name = KNOWN.get(path.stem.casefold(), path.stem)
    return UpscalerFile(name=name, filename=filename, scale=scale)


def _names(files: Mapping[Path, UpscalerFile | None]) -> dict[str, Path]:
    """Stems, which win and of which the first counts, and the names that clients have for some of them."""
    stems: dict[str, Path] = {}
    for path in files:
        stems.setdefault(path.stem, path)
    return {file.name: path for path, file in files.items() if file is not None} | stems
