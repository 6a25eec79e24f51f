"""The names that clients call a checkpoint by."""

import re
from collections.abc import Sequence
from typing import Any

from engine.protocol import Checkpoint
from ingress.errors import InvalidRequest, NotFound, unknown_name


def short_hash(checkpoint: Checkpoint) -> str | None:
    """The first ten hexadecimal digits of the file's SHA-256, if it is known yet."""
    return checkpoint.sha256[:10] or None


def title(checkpoint: Checkpoint) -> str:
    digest = short_hash(checkpoint)
    return f"{checkpoint.filename} [{digest}]" if digest else checkpoint.filename


def short_title(checkpoint: Checkpoint) -> str:
    digest = short_hash(checkpoint)
    return f"{checkpoint.name} [{digest}]" if digest else checkpoint.name


def listing(checkpoint: Checkpoint) -> dict[str, Any]:
    """One entry of GET /sd-models."""
    return {
        "title": title(checkpoint),
        "model_name": checkpoint.name,
        "hash": short_hash(checkpoint),
        "sha256": checkpoint.sha256 or None,
        "filename": checkpoint.filename,
        "config": None,
        "name": checkpoint.name,
    }


def find(wanted: str, checkpoints: Sequence[Checkpoint], field: str) -> Checkpoint:
    """The checkpoint that `wanted` names: exactly, or else but for the letter case. `NotFound` if none."""
    for form in (str, str.casefold):
        for checkpoint in checkpoints:
            if form(wanted) in map(form, _ids(checkpoint, wanted)):
                return checkpoint
    raise NotFound(unknown_name(field, wanted, [checkpoint.name for checkpoint in checkpoints]))


def find_like(wanted: str, checkpoints: Sequence[Checkpoint], field: str) -> Checkpoint:
    """As `find`, or else the one with the shortest title that `wanted` is a part of. `NotFound` if none."""
    try:
        return find(wanted, checkpoints, field)
    except NotFound:
        like = [each for each in checkpoints if wanted.casefold() in title(each).casefold()]
        if not like:
            raise
        return min(like, key=lambda each: len(title(each)))


def with_replicas(checkpoint: Checkpoint, field: str) -> Checkpoint:
    """The checkpoint, if it draws alone. `InvalidRequest` for a companion."""
    if checkpoint.companion:
        raise InvalidRequest(
            f"{field}: {checkpoint.name!r} draws nothing alone. Allowed: as refiner_checkpoint and "
            "hr_checkpoint_name."
        )
    return checkpoint


def _ids(checkpoint: Checkpoint, wanted: str) -> list[str]:
    names = [checkpoint.name, checkpoint.filename, checkpoint.filename.rpartition("/")[2]]
    digest = short_hash(checkpoint)
    if digest:
        return [*names, *(f"{name} [{digest}]" for name in names), digest, checkpoint.sha256]
    # A title from before a restart carries a hash that we do not know again yet: believe it.
    bracket = re.search(r" \[[0-9a-f]{8,10}\]$", wanted)
    return [*names, *(name + bracket[0] for name in names)] if bracket else names
