"""VAEs of a folder, which requests may name in place of a checkpoint's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.cache import Cache
from engine.checkpoint import LoadedCheckpoint, place
from engine.codec import Decoder, Encoder
from engine.families.family import named_vae
from engine.folder import Folder
from engine.header import InvalidFile
from engine.protocol import CheckpointError, InvalidJob, JobFailed, OutOfMemory, VaeFile
from engine.weights import TensorFile

HASH_DIGITS = 10
FIELD = "override_settings.sd_vae"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Vae:
    """A loaded file. Whoever holds this keeps it loaded."""

    name: str
    hash: str
    bytes: int
    encoder: Encoder
    decoder: Decoder


class VaeStore:
    """A folder's VAEs for one checkpoint. Any thread may ask.

    Raises CheckpointError if there is no such folder.
    """

    def __init__(self, folder: Path | None, checkpoint: LoadedCheckpoint, *, max_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._folder = Folder(folder, "VAEs", _described, _names)
        self._cache: Cache[Vae] = Cache(max_bytes)

    def get(self, name: str) -> Vae | None:
        """None for an unknown name.

        Raises InvalidJob for a file that does not fit, and JobFailed for one that is bad.
        """
        path = self._folder.find(name)
        try:
            return None if path is None else self._cache.get(path, self._load)
        except FileNotFoundError:
            return None
        except InvalidFile as error:
            raise JobFailed(f"{FIELD}: {name!r} is no valid safetensors file: {error}") from None
        except CheckpointError as error:
            raise InvalidJob(f"{FIELD}: {name!r} cannot be used: {error.message}") from None
        except OSError as error:
            raise JobFailed(f"{FIELD}: {name!r} cannot be read ({type(error).__name__})") from None
        except torch.OutOfMemoryError:
            raise OutOfMemory(f"{FIELD}: {name!r} does not fit in the device's memory now") from None

    def listing(self) -> list[VaeFile]:
        return sorted(self._folder.listing(), key=lambda file: file.name.casefold())

    def refresh(self) -> None:
        self._folder.refresh()

    @torch.inference_mode()
    def _load(self, path: Path) -> Vae:
        like = self._checkpoint
        with path.open("rb") as opened:
            file = TensorFile(opened)
            vae = like.kind.build_vae()
            named = named_vae(file.outlines(), vae)
            place(vae, like.device, next(like.decoder.vae.parameters()).dtype)
            own = vae.state_dict()
            file.read_into((named[name], own[name]) for name in named)
            digest = file.sha256()
        return Vae(
            name=path.name,
            hash=digest[:HASH_DIGITS],
            bytes=sum(weight.nbytes for weight in vae.parameters()),
            encoder=Encoder(vae, most=like.encoder.most),
            decoder=Decoder(vae, most=like.decoder.most),
        )


def _described(path: Path, filename: str) -> VaeFile:
    return VaeFile(name=path.name, filename=filename)


def _names(files: Mapping[Path, VaeFile]) -> dict[str, Path]:
    """With and without the suffix."""
    return {path.stem: path for path in files} | {path.name: path for path in files}
