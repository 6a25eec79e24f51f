"""Textual-inversion embeddings: names in prompts that stand for learnt vectors.

Gal et al. 2022, "An Image is Worth One Word". Read from .safetensors alone, never from a pickle.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from engine.folder import Version, version
from engine.protocol import CheckpointError, EmbeddingFile
from engine.weights import TensorFile

logger = logging.getLogger(__name__)

HASH_DIGITS = 12
MAX_VECTORS = 75
"""As many as a chunk of a prompt holds."""


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    name: str
    vectors: Tensor
    digest: str


_Files = Mapping[Version, _File | None]
"""Files as they were when they were read; None for one that cannot be used."""
_NONE: _Files = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """A folder of embeddings, by name as vectors (n, channels): those that fit the checkpoint, and others.

    `hashes` are the first twelve digits of their files' SHA-256. Nothing of it changes: what the folder holds
    later is another of these.
    """

    loaded: Mapping[str, Tensor]
    skipped: Mapping[str, Tensor]
    hashes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    folder: Path | None = None
    channels: int = 0
    files: _Files = field(default_factory=lambda: _NONE)

    def listing(self) -> list[EmbeddingFile]:
        return [
            EmbeddingFile(name=name, width=vectors.shape[1], vectors=len(vectors), usable=usable)
            for files, usable in ((self.loaded, True), (self.skipped, False))
            for name, vectors in files.items()
        ]

    def rescanned(self) -> "Embeddings":
        """What the folder holds now: this itself if no file has changed. Reads those that are new or changed.

        Raises CheckpointError if the folder is gone.
        """
        if self.folder is None:
            return self
        now = load_embeddings(self.folder, self.channels, self.files)
        return self if now.files.keys() == self.files.keys() else now


NO_EMBEDDINGS = Embeddings(MappingProxyType({}), MappingProxyType({}))


def load_embeddings(folder: Path, channels: int, known: _Files = _NONE) -> Embeddings:
    """The embeddings of a text encoder of `channels`, by file name without its suffix. On the CPU, float32.

    A file that cannot be used is left out with a warning that says why; one that is `known` is not read
    again. Raises CheckpointError if there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError("there is no folder of embeddings where the configuration says it is")
    files: dict[Version, _File | None] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            now = version(path)
            files[now] = known[now] if now in known else _read(path, channels)
        except OSError as error:  # looked at again the next time
            logger.warning("embedding %r cannot be read: %s", path.stem, error.strerror)
    usable = [file for file in files.values() if file]
    fitting = [file for file in usable if file.vectors.shape[1] == channels]
    others = [file for file in usable if file.vectors.shape[1] != channels]
    return Embeddings(
        loaded={file.name: file.vectors for file in fitting},
        skipped={file.name: file.vectors for file in others},
        hashes={file.name: file.digest[:HASH_DIGITS] for file in fitting},
        folder=folder,
        channels=channels,
        files=files,
    )


def _read(path: Path, channels: int) -> _File | None:
    try:
        with path.open("rb") as file:
            tensors = TensorFile(file)
            vectors, digest = _vectors(tensors), tensors.sha256()
    except ValueError as error:
        logger.warning("embedding %r cannot be read: %s", path.stem, error)
        return None
    if vectors.shape[1] != channels:
        logger.warning(
            "embedding %r is left out: its width is %d, the checkpoint's %d",
            path.stem,
            vectors.shape[1],
            channels,
        )
    return _File(path.stem, vectors, digest)


def _vectors(file: TensorFile) -> Tensor:
    """(n, channels), in any of the layouts; ValueError says what is wrong. Reads only what it returns.

    `emb_params` (AUTOMATIC1111, kohya), `clip_l` and `clip_g` (SDXL, whose two encoders' channels stand one
    behind the other here), or the only tensor under any name (diffusers).
    """
    shapes = file.header.shapes
    names: list[str] = [name for name in ("clip_l", "clip_g") if name in shapes]
    if "emb_params" in shapes:
        names = ["emb_params"]
    if not names and len(shapes) == 1:
        names = list(shapes)
    if not names:
        raise ValueError(f"it has {len(shapes)} tensors, none of them named emb_params, clip_l or clip_g")
    sizes = {name: (1, *shapes[name]) if len(shapes[name]) == 1 else shapes[name] for name in names}
    count = sizes[names[0]][:1]
    if any(len(size) != 2 or size[:1] != count for size in sizes.values()):
        raise ValueError(f"its shapes are {', '.join(str(shapes[name]) for name in names)}")
    if not 1 <= count[0] <= MAX_VECTORS:
        raise ValueError(f"it has {count[0]} vectors; 1 to {MAX_VECTORS} are allowed")
    parts = file.read(names)
    vectors = torch.cat([parts[name].view(size).float() for name, size in sizes.items()], dim=1)
    if not vectors.isfinite().all():
        raise ValueError("it has values that are not finite")
    return vectors


class Vocabulary:
    """Finds embeddings in tokens: by the tokens of their names, which know no letter case, longest first."""

    def __init__(self, names: Iterable[tuple[list[int], Tensor]]) -> None:
        self._starting: dict[int, list[tuple[list[int], Tensor]]] = {}
        for tokens, vectors in sorted(names, key=lambda name: -len(name[0])):
            if tokens:
                self._starting.setdefault(tokens[0], []).append((tokens, vectors))

    def inserted(self, tokens: list[int]) -> Iterator[int | Tensor]:
        """The tokens, with an embedding's vectors (n, channels) in place of its name."""
        position = 0
        while position < len(tokens):
            for name, vectors in self._starting.get(tokens[position], ()):
                if tokens[position : position + len(name)] == name:
                    yield vectors
                    position += len(name)
                    break
            else:
                yield tokens[position]
                position += 1
