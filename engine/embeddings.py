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

from engine.protocol import CheckpointError, EmbeddingFile
from engine.weights import TensorFile

logger = logging.getLogger(__name__)

HASH_DIGITS = 12
MAX_VECTORS = 75
"""As many as a chunk of a prompt holds."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """A folder of embeddings, by name as vectors (n, channels): those that fit the checkpoint, and others.

    `hashes` are the first twelve digits of their files' SHA-256.
    """

    loaded: Mapping[str, Tensor]
    skipped: Mapping[str, Tensor]
    hashes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def listing(self) -> list[EmbeddingFile]:
        return [
            EmbeddingFile(name=name, width=vectors.shape[1], vectors=len(vectors), usable=usable)
            for files, usable in ((self.loaded, True), (self.skipped, False))
            for name, vectors in files.items()
        ]


NO_EMBEDDINGS = Embeddings(MappingProxyType({}), MappingProxyType({}))


def load_embeddings(folder: Path, channels: int) -> Embeddings:
    """The embeddings of a text encoder of `channels`, by file name without its suffix. On the CPU, float32.

    A file that cannot be used is left out with a warning that says why. Raises CheckpointError if there is
    no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError("there is no folder of embeddings where the configuration says it is")
    loaded: dict[str, Tensor] = {}
    skipped: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                tensors = TensorFile(file)
                vectors, digest = _vectors(tensors), tensors.sha256()
        except (ValueError, OSError) as error:
            logger.warning("embedding %r cannot be read: %s", path.stem, getattr(error, "strerror", error))
            continue
        if vectors.shape[1] == channels:
            loaded[path.stem], hashes[path.stem] = vectors, digest[:HASH_DIGITS]
        else:
            skipped[path.stem] = vectors
            logger.warning(
                "embedding %r is left out: its width is %d, the checkpoint's %d",
                path.stem,
                vectors.shape[1],
                channels,
            )
    return Embeddings(loaded, skipped, hashes)


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
