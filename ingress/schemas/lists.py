"""The answers of the lists under `/sdapi/v1`. No name of a file is a path of a machine."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class SdModel(BaseModel):
    """`hash` and `sha256` are null until a replica has read the file. `filename` is relative.

    `name` is what the npm client reads, and `model_name` again.
    """

    model_config = ConfigDict(protected_namespaces=())

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None
    name: str


class VaeItem(BaseModel):
    """`filename` is relative to the folder of VAEs."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    filename: str


class LoraItem(BaseModel):
    """`path` is relative to the folder of LoRAs."""

    name: str
    alias: str
    path: str
    metadata: dict[str, str]


class EmbeddingItem(BaseModel):
    """`shape` is the width of the vectors."""

    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int
    vectors: int


class Embeddings(BaseModel):
    """By name: what prompts may name, and what does not fit the checkpoints."""

    loaded: dict[str, EmbeddingItem]
    skipped: dict[str, EmbeddingItem]


class UpscalerItem(BaseModel):
    """`model_path` is relative to the folder of upscalers."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float = 4.0


class LatentUpscaleMode(BaseModel):
    name: str


class RealEsrganModel(BaseModel):
    """`path` is relative to the folder of upscalers."""

    name: str
    path: str
    scale: int


class SamplerItem(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(BaseModel):
    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class Scripts(BaseModel):
    txt2img: list[str]
    img2img: list[str]


class ScriptInfo(BaseModel):
    name: str
    is_alwayson: bool
    is_img2img: bool
    args: list[dict[str, Any]]
