"""The names that jobs give -> the networks that enlarge."""

from collections.abc import Sequence

from engine.nearest import nearest
from engine.protocol import IMAGE_UPSCALERS, LATENT_UPSCALERS, Job, UpscalerNotFound
from engine.upscalers.store import UpscalerStore
from engine.upscalers.upscaler import Upscaler

SHOWN = 20
"""How many names an error lists."""


def job_upscaler(job: Job, store: UpscalerStore) -> Upscaler | None:
    """Look up, and load if need be, the network of a hires fix; None where it needs none.

    Raises UpscalerError for an unknown name and for a file that cannot be used.
    """
    if job.hires is None or job.hires.upscaler in LATENT_UPSCALERS:
        return None
    found = find_upscaler(job.hires.upscaler, store, "hr_upscaler", LATENT_UPSCALERS)
    return found if isinstance(found, Upscaler) else None


def find_upscaler(name: str, store: UpscalerStore, field: str, others: Sequence[str] = ()) -> Upscaler | str:
    """The network of this name, loaded if need be, or the name where it is one of IMAGE_UPSCALERS.

    Raises UpscalerError, naming `field`, for an unknown name, where `others` are allowed too, and for a file
    that cannot be used.
    """
    if name in IMAGE_UPSCALERS:
        return name
    if upscaler := store.get(name):
        return upscaler
    allowed = [*others, *IMAGE_UPSCALERS, *(file.name for file in store.listing())]
    raise UpscalerNotFound(_unknown(name, field, allowed), name[:80])


def _unknown(name: str, field: str, allowed: Sequence[str]) -> str:
    listed = ", ".join([*allowed[:SHOWN], *(["…"] if len(allowed) > SHOWN else [])])
    return f"{field}: {name[:80]!r} is not known.{nearest(name, allowed)} Allowed: {listed}."
