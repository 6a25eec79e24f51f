"""Quality classes of a checkpoint: exact, and those that give up some of a picture for speed."""

from dataclasses import dataclass

from engine.protocol import CheckpointError

QUALITIES = ("exact", "fp8", "deepcache")


@dataclass(frozen=True, slots=True)
class Quality:
    """One of QUALITIES. `full_every`: of so many evaluations of a row one runs the whole UNet."""

    name: str = "exact"
    full_every: int = 1

    @property
    def shown(self) -> str:
        """What tells its pictures from exact ones, which have none: `fp8`, `deepcache 3`."""
        if self.name == "exact":
            return ""
        return self.name if self.full_every == 1 else f"{self.name} {self.full_every}"


EXACT = Quality()


def quality_of(name: str, interval: int = 3) -> Quality:
    """`interval`: of deepcache alone. Raises CheckpointError for an unknown name."""
    if name not in QUALITIES:
        raise CheckpointError(f"quality {name!r} is not one of {', '.join(QUALITIES)}")
    return Quality(name, interval if name == "deepcache" else 1)
