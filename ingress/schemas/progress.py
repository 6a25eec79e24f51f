"""The bodies of `progress`, `interrupt` and `skip`, and of `/internal/*`."""

from pydantic import BaseModel

from ingress.schemas.sdapi import Integer, LenientModel, Text


class ProgressState(BaseModel):
    skipped: bool
    interrupted: bool
    stopping_generation: bool = False
    """Not in v1.7.0."""
    job: str
    """`scripts_txt2img`, `scripts_img2img` or `extras`; empty if there is nothing."""
    job_count: int
    """Batches, or 0."""
    job_timestamp: str
    job_no: int
    """The batch that is drawn, from 0."""
    sampling_step: int
    sampling_steps: int


class Progress(BaseModel):
    progress: float
    """0 if there is nothing, and while it is queued; else 0.01 and what share of all its work is done."""
    eta_relative: float
    """Seconds until it is done, as far as is known, or 0."""
    state: ProgressState
    current_image: str | None
    """A JPEG in base64 of a picture that is being drawn: a pixel for each eight by eight."""
    textinfo: str | None
    """The place in the queue: `In queue: 2/5`."""


class WhichOrder(LenientModel):
    """The order to stop. All of the caller's, unless one of these says which."""

    id: Text | None = None
    id_task: Text | None = None
    task_id: Text | None = None
    force_task_id: Text | None = None

    @property
    def order(self) -> str | None:
        return self.id or self.id_task or self.task_id or self.force_task_id or None


class InternalProgressRequest(LenientModel):
    id_task: Text = ""
    id_live_preview: Integer = -1
    """The preview that the client has: it is not sent again."""
    live_preview: bool = True


class InternalProgress(BaseModel):
    active: bool
    queued: bool
    completed: bool
    progress: float | None
    eta: float | None
    live_preview: str | None
    """A data URI of a JPEG."""
    id_live_preview: int
    textinfo: str | None


class PendingTasks(BaseModel):
    size: int
    tasks: list[str]
