"""The name that a job's hires fix gives -> the network that enlarges."""

from engine.nearest import nearest
from engine.protocol import IMAGE_UPSCALERS, LATENT_UPSCALERS, Job, UpscalerError
from engine.upscalers.store import UpscalerStore
from engine.upscalers.upscaler import Upscaler

BUILT_IN = (*LATENT_UPSCALERS, *IMAGE_UPSCALERS)
SHOWN = 20
"""How many names an error lists."""


def job_upscaler(job: Job, store: UpscalerStore) -> Upscaler | None:
    """Look up, and load if need be, the network that a job names; None where it names none.

    Raises UpscalerError for an unknown name and for a file that cannot be used.
    """
    if job.hires is None or job.hires.upscaler in BUILT_IN:
        return None
    if upscaler := store.get(job.hires.upscaler):
        return upscaler
    raise UpscalerError(_unknown(job.hires.upscaler, [file.name for file in store.listing()]))


def _unknown(name: str, files: list[str]) -> str:
    allowed = [*BUILT_IN, *files]
    more = ", …" if len(allowed) > SHOWN else ""
    listed = f"{', '.join(allowed[:SHOWN])}{more}"
    return f"hr_upscaler: {name[:80]!r} is not known.{nearest(name, allowed)} Allowed: {listed}."
