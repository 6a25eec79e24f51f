"""What `serve_config.yaml` may say. Every error names the key it is about."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ingress.settings import CompatVersion, Limits

DIFFUSION = "Diffusion"
"""The deployment that holds a checkpoint's replicas, in every checkpoint's application."""

GATEWAY = "Gateway"
"""The deployment that answers HTTP. `serve_config.yaml` lists its checkpoints under this name."""


def _yaml_off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class Config(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointEntry(Config):
    """A checkpoint as the gateway offers it.

    `filename` is what clients see, never a path of a machine. `app` is the Serve application that runs
    it: the one with the same name, unless said otherwise.
    """

    name: str = Field(min_length=1)
    filename: str = Field(min_length=1, pattern=r"^[^/\\][^\\]*$")
    app: str = ""

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
        return self


class GatewayConfig(Config):
    """The gateway's `args`. A change of them restarts the gateway, and nothing else.

    `keys_file` has one `id secret` or `id sha256:<64 hex digits>` a line, `styles_file` is a CSV with the
    columns name, prompt and negative_prompt. `restart_seconds`: how long a checkpoint that has lost its
    last replica still takes jobs, which then wait for the new one. `max_losses`: a job that this many
    replicas died of, or with, is given up.
    """

    auth: Annotated[Literal["keys", "off"], BeforeValidator(_yaml_off)] = "keys"
    keys_file: Path | None = None
    compat_version: CompatVersion = "v1.7.0"
    clip_skip: int = Field(default=1, ge=1, le=12)
    styles_file: Path | None = None
    limits: Limits = Limits()
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

    `path` is the file on the machines that run the replicas, `loras_dir` a folder there whose LoRAs, those in
    folders below it too, prompts may name; of those used lately each replica keeps `loras_memory_mb` MiB
    loaded. An unknown name is a warning, or, with `strict_loras`, an error. `embeddings_dir` has the
    textual-inversion embeddings that prompts may name; it is read when a replica starts. `upscalers_dir` has
    the networks that `hr_upscaler` may name, those in folders below it too; `upscalers_memory_mb` MiB of them
    are kept loaded. `device: auto` is CUDA where `num_gpus` asks for any of it. `max_rows` bounds the model
    rows of one evaluation, where a guided job takes two. `max_ongoing_jobs` (per replica) is the same number
    unless given: two batches of guided jobs, so that the next are there when some leave. Up to
    `max_queued_jobs` more wait in each gateway replica. `cpu_threads` is all cores for a CPU replica unless
    given. A replica whose step takes longer than `step_timeout_seconds` is taken for stuck and replaced. One
    that is told to stop has `drain_seconds` to finish its jobs: at least as long as the longest job.
    """

    name: str = Field(min_length=1)
    path: Path
    loras_dir: Path | None = None
    loras_memory_mb: int = Field(default=1024, ge=1)
    strict_loras: bool = False
    embeddings_dir: Path | None = None
    upscalers_dir: Path | None = None
    upscalers_memory_mb: int = Field(default=512, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_rows: int = Field(default=16, ge=1)
    max_ongoing_jobs: int | None = Field(default=None, ge=1)
    max_queued_jobs: int = Field(default=256, ge=1)
    replicas: int | None = Field(default=None, ge=1)
    autoscaling: Autoscaling | None = None
    num_gpus: float = Field(default=0, ge=0)
    num_cpus: float = Field(default=1, ge=0)
    cpu_threads: int | None = Field(default=None, ge=1)
    accelerator_type: str | None = None
    label_selector: dict[str, str] = {}
    step_timeout_seconds: float = Field(default=60, gt=0)
    drain_seconds: float = Field(default=600, ge=0)

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

    @property
    def torch_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if self.num_gpus else "cpu"

    @property
    def ongoing_jobs(self) -> int:
        return self.max_ongoing_jobs or self.max_rows
