"""What a latent looks like, without a VAE decoding it: for each position one colour, linear in its channels.

A VAE's latents say mostly what colour there is. So a position's colour c, in RGB, is estimated from its four
channels z as c ≈ W z + b. For each VAE W and b are those that minimise Σ |W z + b − c|² over the positions of
one picture, a patchwork of flat colours: z is the latent that the VAE's own encoder makes of it, c the mean
of the 8 × 8 pixels that a position stands for.
"""

import io
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from typing import NamedTuple, Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from engine.codec import Encoder
from engine.images import Picture
from engine.ops import EncodeImage, Estimate

logger = logging.getLogger(__name__)

SECONDS = 0.5
"""From one preview of a job to the next, at least."""
LEVELS = (0, 85, 170, 255)
"""Of each of red, green and blue, in the patchwork."""
PATCH = 16
"""Pixels of a patch's side."""
JPEG_QUALITY = 90


def patchwork() -> Picture:
    """All colours of LEVELS in a square, in no order."""
    colours = np.array(list(product(LEVELS, repeat=3)), np.uint8)
    np.random.default_rng(0).shuffle(colours)
    side = round(len(colours) ** 0.5)
    return colours.reshape(side, side, 3).repeat(PATCH, axis=0).repeat(PATCH, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Colours:
    """What the latents of one VAE look like: `weights` (4, 3) and `bias` (3,), in 0 to 255."""

    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    @classmethod
    def fitted(cls, latent: npt.NDArray[np.float32], picture: Picture) -> Self:
        """From a latent (4, h, w) and the picture (8h, 8w, 3) that it is of."""
        channels, height, width = latent.shape
        z = latent.reshape(channels, -1).T
        c = picture.reshape(height, 8, width, 8, 3).mean(axis=(1, 3), dtype=np.float32).reshape(-1, 3)
        with_one = np.concatenate([z, np.ones_like(z[:, :1])], axis=1)
        solution, *_ = np.linalg.lstsq(with_one, c)
        return cls(solution[:channels], solution[channels])

    def __call__(self, latent: npt.NDArray[np.float32]) -> Picture:
        """(4, h, w) to (h, w, 3)."""
        colours = np.tensordot(latent, self.weights, axes=(0, 0)) + self.bias
        return colours.round().clip(0, 255).astype(np.uint8)


def jpeg(picture: Picture) -> bytes:
    """With every pixel's own colour: there are few of them."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


class Preview(NamedTuple):
    id: int
    jpeg: bytes


NO_PREVIEW = Preview(0, b"")


@dataclass(slots=True, eq=False)
class _Watched:
    """A job's newest preview, what that was or is being made of, and when the next one may be."""

    preview: Preview = NO_PREVIEW
    of: Estimate | None = None
    due: float = 0.0


class Previews:
    """Of the jobs of one worker that are watched. Any thread may ask.

    `threads` make them. `ask` has an operation answered that is no row's, and hands the answer on.
    """

    def __init__(
        self, threads: Executor, ask: Callable[[EncodeImage, Callable[[object], None]], None]
    ) -> None:
        self._threads = threads
        self._ask = ask
        self._ids = count(1)
        self._watched: Mapping[str, _Watched] = {}
        self._colours: WeakKeyDictionary[Encoder, Colours | None] = WeakKeyDictionary()
        self._making: Future[None] | None = None

    def watch(self, job_ids: Collection[str]) -> None:
        """From now on these jobs, and no others."""
        known = self._watched
        self._watched = {job_id: known.get(job_id) or _Watched() for job_id in job_ids}

    def latest(self, job_id: str) -> Preview:
        job = self._watched.get(job_id)
        return job.preview if job else NO_PREVIEW

    def refresh(self, estimates: Mapping[str, Estimate]) -> None:
        """Have previews made of jobs' latest estimates, where they are wanted and due; waits for none.

        All in one go, and none while others are being made: on a GPU they wait for what it is doing.
        """
        if self._making and not self._making.done():
            return
        now, watched = time.monotonic(), self._watched
        due: list[tuple[_Watched, Estimate, Colours]] = []
        for job_id in watched.keys() & estimates.keys():
            job, estimate = watched[job_id], estimates[job_id]
            if now >= job.due and job.of is not estimate and (colours := self._colours_of(estimate)):
                job.of, job.due = estimate, now + SECONDS
                due.append((job, estimate, colours))
        if due:
            self._making = self._threads.submit(self._make, due)
            self._making.add_done_callback(_log_failure)

    def _make(self, due: Sequence[tuple[_Watched, Estimate, Colours]]) -> None:
        for job, estimate, colours in due:
            picture = colours(estimate.latent.cpu().numpy())
            job.preview = Preview(next(self._ids), jpeg(picture))

    def _colours_of(self, estimate: Estimate) -> Colours | None:
        """None before they are known, or if they cannot be. Costs an operation, once for each VAE."""
        encoder = estimate.model.checkpoint.encoder
        if encoder not in self._colours:
            self._colours[encoder] = None
            encoding = EncodeImage(encoder=encoder, pixels=patchwork(), remaining=0)
            self._ask(encoding, partial(self._learn, estimate))  # which keeps the VAE loaded meanwhile
        return self._colours[encoder]

    def _learn(self, estimate: Estimate, latent: object) -> None:
        if isinstance(latent, Tensor):
            colours = Colours.fitted(latent.cpu().numpy(), patchwork())
            self._colours[estimate.model.checkpoint.encoder] = colours
        else:
            logger.warning("there will be no previews of this checkpoint's jobs: %s", latent)


def _log_failure(made: Future[None]) -> None:
    if error := made.exception():
        logger.error("previews failed", exc_info=error)
