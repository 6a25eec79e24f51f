"""What a replica can look up for its jobs: its own checkpoint, and other files that they use besides."""

import threading

from engine.checkpoint import LoadedCheckpoint
from engine.companions import Companions
from engine.protocol import FolderKind
from engine.upscalers.store import UpscalerSettings, UpscalerStore
from engine.vae import VaeStore


class Registry:
    """`own` is named `name`; without `companions` it stands for every name. Any thread may ask."""

    def __init__(
        self,
        own: LoadedCheckpoint,
        name: str = "",
        companions: Companions | None = None,
        vaes: VaeStore | None = None,
        upscalers: UpscalerStore | None = None,
    ) -> None:
        self.own = own
        self.vaes = vaes or VaeStore(None, own, max_bytes=0)
        self.upscalers = upscalers or UpscalerStore(
            UpscalerSettings(), device=own.device, dtype=own.denoiser.dtype
        )
        self._name = name
        self._companions = companions
        self._refreshing = threading.Lock()

    def checkpoint(self, name: str, field: str) -> tuple[LoadedCheckpoint, object]:
        """The checkpoint of this name, and what keeps it loaded while it is held. May take seconds.

        Raises InvalidJob, naming `field`, for one that is not here, and JobFailed for a file that is bad.
        """
        if self._companions is None or name == self._name:
            return self.own, None
        return self._companions.get(name, field)

    def refresh(self, kind: FolderKind) -> None:
        """Look through these folders again. Jobs that are prepared keep what they have.

        Reads files that are new or changed. Raises CheckpointError if a folder is gone.
        """
        with self._refreshing:
            if kind == "vaes":
                self.vaes.refresh()
                return
            self.own = self.own.refreshed(kind)
            if self._companions:
                self._companions.refresh(kind)
