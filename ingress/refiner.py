"""The refiner: from its request fields to a checkpoint that takes over on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.protocol import Checkpoint, Refiner
from ingress import checkpoints
from ingress.limits import check_range
from ingress.schemas.sdapi import GenerationRequest, OverrideSettings
from ingress.settings import CompatVersion


@dataclass(frozen=True, slots=True)
class Refining:
    """A request's refiner, and in which passes of a hires fix it takes part."""

    refiner: Refiner
    checkpoint: Checkpoint
    passes: str
    version: CompatVersion

    @property
    def first(self) -> Refiner | None:
        return None if self.passes == "second pass" else self.refiner

    @property
    def second(self) -> Refiner | None:
        return None if self.passes == "first pass" else self.refiner

    def params(self, *, hires: bool) -> dict[str, Any]:
        """What the infotext says of it. That v1.7.0 counts steps, its version says."""
        params: dict[str, Any] = {
            "Refiner": checkpoints.short_title(self.checkpoint),
            "Refiner switch at": self.refiner.switch_at,
        }
        if self.version != "v1.7.0" and not self.refiner.by_timestep:
            params["Refiner switch by sampling steps"] = True
        if hires and self.passes != "second pass":
            params["Hires refiner"] = self.passes
        return params


def refining(
    request: GenerationRequest,
    overrides: OverrideSettings,
    available: Sequence[Checkpoint],
    version: CompatVersion,
) -> Refining | None:
    """None for a request without one. Without `refiner_switch_at` it takes over at once.

    v1.7.0 counts steps on the way to the switch, later versions the model's timesteps.
    """
    name = request.refiner_checkpoint or ""
    if name.casefold() in ("", "none"):
        return None
    check_range("refiner_switch_at", request.refiner_switch_at, 0, 1)
    checkpoint = checkpoints.find_like(name, available, "refiner_checkpoint")
    by_steps = version == "v1.7.0" or overrides.refiner_switch_by_sample_steps
    refiner = Refiner(
        checkpoint=checkpoint.name, switch_at=request.refiner_switch_at or 0.0, by_timestep=not by_steps
    )
    return Refining(refiner, checkpoint, overrides.hires_fix_refiner_pass, version)
