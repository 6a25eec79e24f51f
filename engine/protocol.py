"""What may cross a process: jobs, results, errors. Standard library only.

A `Job` is one image to make, fully resolved: nothing in it is optional, so any replica can run it, at
any time, and make the same picture.
"""

from dataclasses import dataclass

SAMPLERS = ("Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ 2M SDE", "DDIM")
"""Canonical sampler names. Wire aliases and combined names are the ingress' business."""

SCHEDULES = ("uniform", "karras", "exponential")
"""Canonical noise schedules. DDIM walks its own timesteps and ignores this."""

EMPHASIS = ("Original", "No norm", "Ignore", "None")
"""How brackets in prompts count: scaled to keep the mean, as they are, read but without effect, as text."""

MAX_PROMPT_CHARS = 4000


PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What is read of clients' pictures: none that Pillow reads with the help of other programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Which part of a picture to make anew.

    `image` is the bytes of a picture file, white where to repaint, or with an alpha channel that is the
    mask. It is inverted if `invert`, then blurred by Gaussians of `blur_x` and `blur_y` pixels. `content` is
    what the masked part starts from: fill, original, latent noise or latent nothing. `only_masked` draws
    the masked part, with `padding` pixels around it, at the job's size. `soft` keeps grey values in the
    latent.
    """

    image: bytes
    blur_x: float
    blur_y: float
    invert: bool
    content: str
    only_masked: bool
    padding: int
    soft: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InitImage:
    """The picture that an img2img job starts from: the bytes of a file.

    `resize_mode` is stretch, crop, fill or latent. `noise_multiplier` scales the initial noise.
    """

    image: bytes
    denoising_strength: float
    resize_mode: str
    noise_multiplier: float
    mask: Mask | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image to make.

    `width` and `height` are pixels as asked for; the picture has `8 * (n // 8)` of them.
    `infotext` is written into the PNG unchanged. `s_tmax` may be `math.inf`.
    `priority`: smaller runs earlier.
    """

    id: str
    checkpoint: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    sampler: str
    schedule: str
    eta: float
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    eta_noise_seed_delta: int
    clip_skip: int
    infotext: str
    init: InitImage | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a job's time went, in seconds. `wait` is time in the replica before its first operation."""

    wait: float
    encode: float
    denoise: float
    decode: float
    png: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A finished picture: PNG bytes with the infotext in their `parameters` text chunk."""

    job_id: str
    png: bytes
    seed: int
    evaluations: int
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint as clients may know it.

    `filename` is relative, never a path of the machine. `sha256` is empty until a replica has read the
    file. `available`: some replica can take jobs for it, or one will be started for them.
    """

    name: str
    filename: str
    sha256: str = ""
    available: bool = True


class AtelierError(Exception):
    """Base of all errors that may reach a client: the message is written for the client.

    All arguments go to `super().__init__`, so that errors survive pickling between processes.
    """

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


class InvalidJob(AtelierError):
    """The job asks for something that no replica can do. Never retried."""


class LoraError(InvalidJob):
    """A LoRA that the job names is not there, or cannot be used with this checkpoint."""


class JobFailed(AtelierError):
    """This job failed for a reason of its own. Never retried: it would fail again."""


class NotFinite(JobFailed):
    """The denoised latent or the decoded picture contained NaN or infinity."""


class OutOfMemory(JobFailed):
    """The job does not fit on the device even alone."""


class JobAborted(AtelierError):
    """The job was aborted before it was done."""


class Overloaded(AtelierError):
    """No room for another job now. `Overloaded(message, retry_after_seconds)`."""

    @property
    def retry_after(self) -> float:
        return float(self.args[1]) if len(self.args) > 1 else 1.0


class Unavailable(AtelierError):
    """The checkpoint has no replica that could take the job. `Unavailable(message, retry_after_seconds)`."""

    @property
    def retry_after(self) -> float:
        return float(self.args[1]) if len(self.args) > 1 else 5.0


class DeadlineExceeded(AtelierError):
    """The job was not done in time and was aborted."""


class CheckpointError(AtelierError):
    """A checkpoint file cannot be used. Raised while loading, never by a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one `Engine.step()` did and left behind.

    `jobs` shared the call, as `rows` model rows (a guided evaluation is two). `running` and `waiting`
    are the jobs in the engine after it: begun, and not begun yet. `model_seconds` is the batched call,
    `seconds` the whole step.
    """

    operation: str
    jobs: int
    rows: int
    seconds: float
    model_seconds: float
    running: int
    waiting: int
