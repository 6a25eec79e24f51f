"""`save_images`: a request's pictures, and a grid of them, into the store."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from engine.protocol import FileFormat, JobResult
from ingress.files import EXTENSIONS, grid
from ingress.store.pictures import PictureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What of a request is saved. `shows_grid`: the answer has the grid too."""

    samples: bool
    grid: bool
    shows_grid: bool


async def save(
    saving: Saving, results: Sequence[JobResult], written: FileFormat, started: datetime, store: PictureStore
) -> bytes | None:
    """The grid that the answer has, if any. There is one of several pictures only.

    Raises StoreFailed.
    """
    folder, time, end = f"{started:%Y-%m-%d}", f"{started:%H%M%S}", EXTENSIONS[written.kind]
    files = {}
    whole = None
    if saving.samples:
        files = {f"{folder}/{time}-{each.seed}-{each.job_id}.{end}": each.image for each in results}
    if len(results) > 1 and (saving.grid or saving.shows_grid):
        pictures = [each.image for each in results]
        whole = await asyncio.to_thread(grid, pictures, written, results[0].infotext)
        if saving.grid:
            files[f"{folder}/{time}-grid-{results[0].job_id}.{end}"] = whole
    await store.save(files)
    return whole if saving.shows_grid else None
