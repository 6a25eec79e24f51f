"""What a replica can look up for its jobs: its own checkpoint, and others that they use besides."""

from engine.checkpoint import LoadedCheckpoint
from engine.companions import Companions


class Library:
    """`own` is named `name`; without a name it stands for every name that `companions` have not."""

    def __init__(self, own: LoadedCheckpoint, name: str = "", companions: Companions | None = None) -> None:
        self.own = own
        self._name = name
        self._companions = companions

    def checkpoint(self, name: str, field: str) -> tuple[LoadedCheckpoint, object]:
        """The checkpoint of this name, and what keeps it loaded while it is held. May take seconds.

        Raises InvalidJob, naming `field`, for one that is not here, and JobFailed for a file that is bad.
        """
        if self._companions is None or name == self._name:
            return self.own, None
        return self._companions.get(name, field)
