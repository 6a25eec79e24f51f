"""What may cross a process: jobs, results, errors. Standard library only.

A `Job` is one image to make, fully resolved: nothing in it is optional, so any replica can run it, at
any time, and make the same picture.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

SAMPLERS = (
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "Euler a",
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "DDIM",
    "DDIM CFG++",
    "PLMS",
    "UniPC",
    "LCM",
)
"""Canonical sampler names. Wire aliases and combined names are the ingress' business."""

SCHEDULES = (
    "uniform",
    "karras",
    "exponential",
    "polyexponential",
    "sgm_uniform",
    "kl_optimal",
    "align_your_steps",
    "simple",
    "normal",
    "ddim",
    "beta",
)
"""Canonical noise schedules. Samplers with levels of their own ignore this."""

NOISE_SOURCES = ("cpu", "nvidia")
"""Whose random numbers: torch's CPU generator, or as an NVIDIA GPU draws them (computed on the CPU)."""

EMPHASIS = ("Original", "No norm", "Ignore", "None")
"""How brackets in prompts count: scaled to keep the mean, as they are, read but without effect, as text."""

MAX_PROMPT_CHARS = 4000


PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""What is read of clients' pictures: none that Pillow reads with the help of other programs."""
FILE_FORMATS = ("PNG", "JPEG", "WEBP")
"""What finished pictures are written as."""

USER_COMMENT = 0x9286
"""EXIF's tag of the text that a JPEG or WEBP file carries, in the directory `EXIF_DIRECTORY`."""
EXIF_DIRECTORY = 0x8769


def user_comment(text: str) -> bytes:
    """The value of that tag as AUTOMATIC1111 writes it."""
    return b"UNICODE\0" + text.encode("utf-16-be")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """How a finished picture becomes a file: `kind` is one of FILE_FORMATS.

    `quality`, 1 to 100, is JPEG's, and WEBP's unless that is `lossless`. `with_text`: the file carries the
    text of its picture.
    """

    kind: str = "PNG"
    quality: int = 80
    lossless: bool = False
    with_text: bool = True


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

    int(denoising_strength · steps) + 1 sampling steps are made, or `exact_steps`: all that the job says, of a
    longer schedule. `resize_mode` is stretch, crop, fill or latent. `noise_multiplier` scales the initial
    noise.
    """

    image: bytes
    denoising_strength: float
    exact_steps: bool
    resize_mode: str
    noise_multiplier: float
    mask: Mask | None


LATENT_UPSCALERS = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
IMAGE_UPSCALERS = ("None", "Lanczos", "Nearest")
"""Canonical names of what enlarges without a network. None is Lanczos too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refiner:
    """A checkpoint that takes over on the way, at `switch_at`: 0 from the beginning, 1 never.

    That is a share of the evaluations, or, with `by_timestep`, of the training timesteps from the last to 0.
    """

    checkpoint: str
    switch_at: float
    by_timestep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hires:
    """The second pass of a hires fix.

    `upscaler` is one of LATENT_UPSCALERS or IMAGE_UPSCALERS, or the name of an upscaler's file.
    The first pass's picture is enlarged to `upscaled_width` × `upscaled_height` and cut, centred, to `width`
    × `height`. Then exactly `steps` sampling steps are made from `denoising_strength` on; 0 makes none.
    """

    checkpoint: str
    upscaler: str
    upscaled_width: int
    upscaled_height: int
    width: int
    height: int
    steps: int
    denoising_strength: float
    sampler: str
    schedule: str
    eta: float
    prompt: str
    negative_prompt: str
    refiner: Refiner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image to make.

    `width` and `height` are pixels as asked for; the picture has `8 * (n // 8)` of them.
    `infotext` is written into the file, with the hashes of the job's LoRAs. `s_tmax` may be `math.inf`.
    The initial noise goes `subseed_strength` of the way from `seed`'s to `subseed`'s. Where both
    `seed_resize_from_…` are above 0, it is made for that size and pasted into the middle of the job's.
    `noise_source` is one of NOISE_SOURCES. `discard_next_to_last_sigma`: as some samplers always do.
    The prompt's `<lora:…>` tags are applied unless `extra_networks` is false; they are never text.
    `emphasis` is one of EMPHASIS. `old_scheduling`: in prompts, a number of steps below 1 is a fraction.
    `refiner` is the first pass's. `vae` is a file's name; empty: the checkpoint's own. `tiling`: opposite
    edges of the picture fit one another.
    `priority`: smaller runs earlier. `seconds_left`: what it has from when a replica gets it until it should
    be done.
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
    hires: Hires | None = None
    subseed: int = 0
    subseed_strength: float = 0.0
    seed_resize_from_w: int = 0
    seed_resize_from_h: int = 0
    noise_source: str = "cpu"
    discard_next_to_last_sigma: bool = False
    extra_networks: bool = True
    emphasis: str = "Original"
    old_scheduling: bool = False
    refiner: Refiner | None = None
    vae: str = ""
    tiling: bool = False
    file_format: FileFormat = FileFormat()
    priority: int = 0
    seconds_left: float = math.inf

    def second_pass(self) -> "Job":
        """The second pass of a hires fix as a job of its own."""
        assert self.hires is not None
        hires = self.hires
        return replace(
            self,
            checkpoint=hires.checkpoint,
            prompt=hires.prompt,
            negative_prompt=hires.negative_prompt,
            width=hires.width,
            height=hires.height,
            steps=hires.steps,
            sampler=hires.sampler,
            schedule=hires.schedule,
            eta=hires.eta,
            refiner=hires.refiner,
            hires=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlargement:
    """One given picture to make larger, or smaller: `image` is the bytes of a file.

    Any replica that has the upscalers can; it is one of `checkpoint`'s. Of a `box`, (width, height) in
    pixels, the picture becomes as large as fits into it, or, with `crop`, as covers it, and is cut to it,
    centred. Without one its sides become `scale` times as long, in multiples of 8. More than `max_pixels` are
    refused.
    `upscaler` and `second` are of IMAGE_UPSCALERS or names of upscalers' files. An `upscaler` of None leaves
    the picture as it is. `second_visibility`, 0 to 1, is how much of the result is by the second.
    `texts` are written into the file by their names, into a JPEG or WEBP one `parameters` alone.
    """

    id: str
    checkpoint: str
    image: bytes
    scale: float
    box: tuple[int, int] | None
    crop: bool
    max_pixels: int
    upscaler: str
    second: str
    second_visibility: float
    texts: Mapping[str, str]
    file_format: FileFormat = FileFormat()
    priority: int = 0
    seconds_left: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a job's time went, in seconds. `wait` is time in the replica before its first operation."""

    wait: float
    encode: float
    denoise: float
    decode: float
    write: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A finished picture: `image` is the bytes of a file, in the job's format and with its infotext.

    `infotext` is the job's with what only the replica knows: `lora_hashes` and `embedding_hashes`, "name:
    hash, …" of those used, and name and hash of a VAE other than the checkpoint's own. `warnings` are what
    the job asked for and did not get. `inpainting`: the checkpoint is one for that. `quality`: the class that
    it was drawn in, empty for exact. `interrupted`: the picture is what there was of it by then. An
    enlargement has neither seed nor evaluations nor infotext: 0 and empty.
    """

    job_id: str
    image: bytes
    timings: Timings
    seed: int = 0
    evaluations: int = 0
    infotext: str = ""
    lora_hashes: str = ""
    embedding_hashes: str = ""
    vae: str = ""
    vae_hash: str = ""
    warnings: tuple[str, ...] = ()
    inpainting: bool = False
    quality: str = ""
    interrupted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """How far a job is in its replica, over all its passes.

    `done` and `total` are evaluations, the latter as far as is known now: less where it is interrupted, a
    guess for DPM adaptive; while the job is being prepared, the sampling steps that it asks for. `running`:
    it has taken part in a step. `preview` is a JPEG of the latest estimate, a pixel for each position of the
    latent; empty unless the job is watched and one was made since. `preview_id` is 0 without one, and higher
    for each new one.
    """

    job_id: str
    done: int
    total: int
    running: bool
    preview: bytes = b""
    preview_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint as clients may know it.

    `filename` is relative, never a path of the machine. `sha256` is empty until a replica has read the
    file. `available`: some replica can take jobs for it, or one will be started for them. `companion`: it has
    no replicas, but those of others may load it as refiner or for a second pass.
    """

    name: str
    filename: str
    sha256: str = ""
    available: bool = True
    companion: bool = False


FolderKind = Literal["embeddings", "loras", "vaes"]
"""Files that jobs name and replicas find in folders, which they can look through again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA that prompts may name: by `name`, its file's stem, or by `alias`.

    `filename` is relative, never a path of the machine. `metadata` is its trainer's, without long values.
    """

    name: str
    alias: str
    filename: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFile:
    """A textual-inversion embedding: `vectors` of `width` channels. `usable` if that is the checkpoint's."""

    name: str
    width: int
    vectors: int
    usable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeFile:
    """A VAE that requests may name by its file's name. `filename` is relative to a folder of theirs."""

    name: str
    filename: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalerFile:
    """An upscaler that requests may name. `filename` is relative, never a path of the machine."""

    name: str
    filename: str
    scale: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes now, and the most there were at once."""

    current: int
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """A GPU's memory in bytes, and what one replica has of it.

    `device` tells GPUs apart, which replicas may share. Of what is `reserved`, `allocated` are tensors,
    `active` these and what the device's queue still uses, `inactive` what is left over in blocks that are
    used in part. `retries` and `failures` count allocations: tried again after all that was unused had been
    given back, and failed.
    """

    device: str
    free: int
    total: int
    active: Usage
    allocated: Usage
    reserved: Usage
    inactive: Usage
    retries: int
    failures: int


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


class UpscalerError(InvalidJob):
    """An upscaler that the job names is not there, or cannot be used."""


class UpscalerNotFound(UpscalerError):
    """There is no such upscaler here. `UpscalerNotFound(message, name)`."""

    @property
    def name(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else ""


class JobFailed(AtelierError):
    """This job failed for a reason of its own. Never retried: it would fail again."""


class NotFinite(JobFailed):
    """The denoised latent, the decoded picture or the enlarged one contained NaN or infinity."""


class OutOfMemory(JobFailed):
    """The job does not fit on the device even alone."""


class JobAborted(AtelierError):
    """The job was aborted before it was done."""


class Interrupted(JobAborted):
    """The job was interrupted before there was any estimate of its picture."""


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


class NotOffered(AtelierError):
    """A feature that AUTOMATIC1111 has and this service has not, or not without what it was not given."""


class CheckpointError(AtelierError):
    """A checkpoint file cannot be used. Raised while loading, never by a job."""


class CheckpointLost(AtelierError):
    """A loaded checkpoint's weights were half overwritten by another file's: it has to be loaded anew."""


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
