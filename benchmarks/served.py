"""What a server under test is given to serve."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Served:
    """Requests name a checkpoint by its file's name without suffix; the first is for those that name none.

    `threads` are torch's in each process, `loras` is a folder of files that prompts may name, `replicas` how
    many processes have each checkpoint.
    """

    checkpoints: tuple[Path, ...]
    threads: int
    loras: Path | None = None
    replicas: int = 1
