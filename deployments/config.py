"""What `serve_config.yaml` may say. Every error names the key it is about."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ingress.settings import CompatVersion, CorsOrigins, Limits, OrderSettings
from ingress.store.database import parsed

DIFFUSION = "Diffusion"
"""The deployment that holds a checkpoint's replicas, in every checkpoint's application."""

GATEWAY = "Gateway"
"""The deployment that answers HTTP. `serve_config.yaml` lists its checkpoints under this name."""


def _yaml_off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


def _a_database(url: str) -> str:
    parsed(url)
    return url


PictureSide = Annotated[int, Field(ge=64, multiple_of=8)]
"""Pixels."""


class Config(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointEntry(Config):
    """A checkpoint as the gateway offers it.

    `filename` is what clients see, never a path of a machine. `app` is the Serve application that runs it:
    the one with the same name, unless said otherwise. A `companion` has none: it is offered as refiner and
    for the second pass of a hires fix, to checkpoints that have it among their `companions`.
    """

    name: str = Field(min_length=1)
    filename: str = Field(min_length=1, pattern=r"^[^/\\][^\\]*$")
    app: str = ""
    companion: bool = False

    @property
    def application(self) -> str:
        return self.app or self.name


class Offer(Config):
    """The gateway's `user_config`: what it offers, the default first. May change while it runs."""

    checkpoints: tuple[CheckpointEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [entry.name for entry in self.checkpoints]
        if len(set(names)) < len(names):
            raise ValueError(f"checkpoints: the same name twice in {names}")
        if self.checkpoints[0].companion:
            raise ValueError(f"checkpoints: the first is the default, and {names[0]!r} is only a companion")
        return self


class GatewayConfig(Config):
    """The gateway's `args`. A change of them restarts the gateway, and nothing else.

    `keys_file` has one `id secret` or `id sha256:<64 hex digits>` a line, with what the key is for
    behind it (`read,generate`) unless for all, `styles_file` is a CSV with the columns name, prompt and
    negative_prompt. `database` is where orders, answers and options are kept: an
    SQLite file that all gateways share, so on one machine, or `postgresql://user@host/name`, whose password
    belongs into `PGPASSWORD` or `~/.pgpass` where gateways run. What requests with an Idempotency-Key were
    answered is kept for `answers_seconds`, and at most `answers_mb` (MiB) of it. `results` is
    where the pictures of `/v1/jobs` are kept: a folder that all gateways share, or `s3://bucket/prefix`, with
    the extra `s3` installed and the credentials in the environment. It is this service's alone: what no job
    knows of is deleted there. `webhook_secret_file` has what webhooks are signed with, `whsec_` and base64;
    without it no job can have one. They go to public addresses, and to those of `webhook_networks`.
    `save_dir` is where `save_images` writes: a folder of the gateway's machine, or an address that fsspec
    understands (`s3://bucket/folder`, with s3fs installed and the credentials in the environment).
    `restart_seconds`: how long a checkpoint that has lost its last replica still takes jobs, which then wait
    for the new one. `max_losses`: a job that this many replicas died of, or with, is given up.
    """

    model_config = ConfigDict(hide_input_in_errors=True)
    """The database's URL may have a password in it."""

    auth: Annotated[Literal["keys", "off"], BeforeValidator(_yaml_off)] = "keys"
    keys_file: Path | None = None
    compat_version: CompatVersion = "v1.7.0"
    clip_skip: int = Field(default=1, ge=1, le=12)
    styles_file: Path | None = None
    cors_origins: CorsOrigins = ()
    save_dir: str | None = Field(default=None, min_length=1)
    limits: Limits = Limits()
    database: Annotated[str, AfterValidator(_a_database)] = "sqlite:///.atelier/atelier.sqlite"
    answers_seconds: float = Field(default=24 * 3600, gt=0)
    answers_mb: int = Field(default=1024, ge=1)
    results: str = ".atelier/results"
    orders: OrderSettings = OrderSettings()
    webhook_secret_file: Path | None = None
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    num_replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=1000, ge=1)
    restart_seconds: float = Field(default=60, ge=0)
    max_losses: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _keys_need_a_file(self) -> Self:
        if self.auth == "keys" and self.keys_file is None:
            raise ValueError("keys_file: needed, because auth is 'keys'")
        return self


class Autoscaling(Config):
    """Between `min` and `max` replicas, so that each has about `target_ongoing_jobs`."""

    min: int = Field(default=1, ge=0)
    max: int = Field(ge=1)
    target_ongoing_jobs: float = Field(gt=0)
    upscale_delay_seconds: float = Field(default=5, ge=0)
    downscale_delay_seconds: float = Field(default=300, ge=0)

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is above max: {self.max}")
        return self


class CheckpointConfig(Config):
    """One checkpoint's `args`. A change of them restarts its replicas, and nobody else's.

    Paths are those of the machines that run the replicas. Folders count with those below them; of the files
    used lately each replica keeps as many MiB loaded as the budget beside the folder says.
    """

    name: str = Field(min_length=1)
    path: Path
    loras_dir: Path | None = None
    """LoRAs that prompts may name."""
    loras_memory_mb: int = Field(default=1024, ge=1)
    strict_loras: bool = False
    """An unknown LoRA is an error, instead of a warning."""
    embeddings_dir: Path | None = None
    """Textual-inversion embeddings that prompts may name. No folders below it; read when a replica starts."""
    upscalers_dir: Path | None = None
    """Networks that `hr_upscaler` and the routes extra-… may name."""
    upscalers_memory_mb: int = Field(default=512, ge=1)
    vae_dir: Path | None = None
    """VAEs that the option `sd_vae` may name."""
    vaes_memory_mb: int = Field(default=1024, ge=1)
    captioner_dir: Path | None = None
    """A BLIP model in safetensors, as published for transformers: what the route `interrogate` asks. Loaded
    when that is first used, beside every budget here."""
    companions: dict[str, Path] = {}
    """Other checkpoints, by the names that the gateway offers them under, which this one's jobs may use as
    refiner or for the second pass of a hires fix."""
    companions_memory_mb: int = Field(default=8192, ge=1)
    """What needs more room than is left waits until another companion is not in use."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is float16 on a GPU and float32 on a CPU."""
    quality: Literal["exact", "fp8", "deepcache"] = "exact"
    """`fp8`: the UNet multiplies 8-bit floats; needs a GPU of compute capability 8.9 or later. `deepcache`:
    of `deepcache_interval` evaluations one runs the whole UNet, the others reuse its inner features. Pictures
    of these differ from exact ones, and say so in their infotext. Companions are of the same class."""
    deepcache_interval: int = Field(default=3, ge=2)
    """What a job keeps meanwhile is 10 MB for SD 1.5 at 512 × 512 in float16, 42 for SDXL at 1024 × 1024."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is CUDA where `num_gpus` asks for any of it."""
    max_rows: int = Field(default=16, ge=1)
    """Most model rows of one evaluation, where a guided job takes two."""
    attention: Literal["auto", "torch", "flash", "cudnn", "efficient", "xformers"] = "auto"
    """What computes attention on a GPU, where no mask is. `auto` is measured when first started there; with
    `strict` and on a CPU it is `torch`, which leaves it to torch. `xformers` has to be installed."""
    cuda_graphs: Annotated[Literal["auto", "off"], BeforeValidator(_yaml_off)] = "auto"
    """Evaluations are recorded and replayed: on a GPU, unless `off`."""
    most_graphs: int = Field(default=64, ge=1)
    """Recordings kept of a checkpoint, each for a number of rows, a size of pictures and a length of prompts.
    Their memory is no part of any budget here; when it runs out, half of them go."""
    compile: Annotated[
        Literal["off", "default", "max-autotune-no-cudagraphs"], BeforeValidator(_yaml_off)
    ] = "off"
    """A mode of torch.compile, on GPUs: what is tuned for is compiled before the replica is ready, which may
    take minutes for each of `row_counts` and `sizes`. Everything else runs as it does without."""
    row_counts: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Rows that recorded and compiled evaluations have, ascending; others are filled up to the next. Measured
    when first started on a kind of GPU unless given, and kept in XDG_CACHE_HOME/atelier/profiles."""
    sizes: tuple[tuple[PictureSide, PictureSide], ...] = ()
    """Width and height of pictures to tune for. The size that the checkpoint is made for unless given."""
    strict: bool = False
    """A picture's bits depend on its job alone: jobs share no call, and draw as much slower together."""
    max_ongoing_jobs: int | None = Field(default=None, ge=1)
    """Per replica. `max_rows` unless given: two batches of guided jobs, so that the next are there when some
    leave."""
    max_queued_jobs: int = Field(default=256, ge=1)
    """How many more may wait in each gateway replica."""
    replicas: int | None = Field(default=None, ge=1)
    autoscaling: Autoscaling | None = None
    num_gpus: float = Field(default=0, ge=0)
    num_cpus: float = Field(default=1, ge=0)
    cpu_threads: int | None = Field(default=None, ge=1)
    """All cores for a CPU replica unless given."""
    accelerator_type: str | None = None
    label_selector: dict[str, str] = {}
    step_timeout_seconds: float = Field(default=60, gt=0)
    """A replica whose step takes longer is taken for stuck and replaced."""
    drain_seconds: float = Field(default=600, ge=0)
    """What a replica that is told to stop has to finish its jobs: at least as long as the longest job."""

    @model_validator(mode="after")
    def _one_way_to_say_how_many(self) -> Self:
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("replicas: excluded by autoscaling, say one of the two")
        return self

    @model_validator(mode="after")
    def _cuda_needs_a_gpu(self) -> Self:
        if self.device == "cuda" and self.num_gpus == 0:
            raise ValueError("num_gpus: needed, because device is 'cuda'")
        return self

    @model_validator(mode="after")
    def _fp8_needs_a_gpu(self) -> Self:
        if self.quality == "fp8" and self.torch_device == "cpu":
            raise ValueError("quality: 'fp8' needs a GPU of compute capability 8.9 or later, so num_gpus")
        return self

    @model_validator(mode="after")
    def _what_is_for_gpus_needs_one(self) -> Self:
        if self.torch_device == "cpu":
            for key, plain in (
                ("attention", ("auto", "torch")),
                ("compile", ("off",)),
                ("row_counts", ((),)),
                ("sizes", ((),)),
            ):
                if getattr(self, key) not in plain:
                    raise ValueError(f"{key}: {getattr(self, key)!r} is for GPUs, and this runs on a CPU")
        return self

    @model_validator(mode="after")
    def _strict_pictures_have_one_way(self) -> Self:
        """What is chosen by measured times may be another at the next start."""
        if self.strict and self.compile != "off":
            raise ValueError("compile: excluded by strict, as compiled code may differ from start to start")
        if self.strict and self.row_counts:
            raise ValueError("row_counts: excluded by strict, whose calls are filled up to nothing")
        return self

    @model_validator(mode="after")
    def _row_counts_ascend(self) -> Self:
        if list(self.row_counts) != sorted(set(self.row_counts)):
            raise ValueError(f"row_counts: {list(self.row_counts)} do not ascend")
        if self.row_counts and self.row_counts[-1] > self.max_rows:
            raise ValueError(f"row_counts: {self.row_counts[-1]} is above max_rows, {self.max_rows}")
        return self

    @property
    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if self.num_gpus else "cpu"

    @property
    def ongoing_jobs(self) -> int:
        return self.max_ongoing_jobs or self.max_rows
