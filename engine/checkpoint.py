"""Checkpoint files -> what rows run on. Local files only, safetensors only, nothing from the network."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.codec import Decoder, Encoder
from engine.conditioning import Conditioner, Tokenizer, Vector
from engine.denoiser import Denoiser
from engine.embeddings import NO_EMBEDDINGS, Library, load_embeddings
from engine.families import sd1
from engine.lora.file import layers
from engine.lora.layers import RowLoras
from engine.lora.store import LoraSettings, LoraStore
from engine.protocol import CheckpointError
from engine.schedules import scaled_linear
from engine.tokenizer import load_tokenizer

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NO_LORAS = LoraSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """Everything an operation needs of a checkpoint, on one device. `sha256` is the file's."""

    sha256: str
    device: torch.device
    conditioner: Conditioner
    denoiser: Denoiser
    encoder: Encoder
    decoder: Decoder
    loras: LoraStore
    embeddings: Library


class ClipTextEncoder:
    """CLIP's text transformer with access to its inner layers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.num_layers: int = model.config.num_hidden_layers
        self.width: int = model.config.hidden_size

    def hidden_states(self, tokens: Tensor, skip: int, vectors: Sequence[Vector]) -> Tensor:
        embedding: nn.Module = self._model.get_input_embeddings()
        with embedding.register_forward_hook(partial(_insert, vectors)):
            states = self._model(tokens, output_hidden_states=True).hidden_states
        normed: Tensor = self._model.final_layer_norm(states[-skip])
        return normed


def _insert(vectors: Sequence[Vector], module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """A forward hook: embeddings' vectors in their places among the tokens' own."""
    if not vectors:
        return output
    rows, positions, values = zip(*vectors, strict=True)
    places = torch.tensor([rows, positions], device=output.device)
    return output.index_put(tuple(places), torch.stack(values).to(output.device, output.dtype))


def load_checkpoint(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: LoraSettings = NO_LORAS,
    embeddings: Path | None = None,
) -> LoadedCheckpoint:
    """Read a .safetensors file in the original LDM layout.

    `dtype` "auto" is float16 on a GPU and float32 on a CPU. The VAE stays in float32 where the rest is
    float16, which it overflows. Replace the file by renaming only: on a CPU its weights are mapped.
    Raises CheckpointError with the reason, without the path.
    """
    target = _device(device)
    unet, vae, text_encoder = sd1.build(*read(path))
    width = ClipTextEncoder(text_encoder).width
    loaded = assemble(
        unet,
        vae,
        text_encoder,
        device=target,
        dtype=_dtype(dtype, target),
        loras=loras,
        embeddings=load_embeddings(embeddings, width) if embeddings else NO_EMBEDDINGS,
    )
    return replace(loaded, sha256=_sha256(path))


def assemble(
    unet: nn.Module,
    vae: nn.Module,
    text_encoder: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    loras: LoraSettings = NO_LORAS,
    embeddings: Library = NO_EMBEDDINGS,
) -> LoadedCheckpoint:
    """A checkpoint from its modules, moved to where and how they shall run; it has no digest."""
    vae_dtype = torch.float32 if dtype is torch.float16 else dtype
    for module, own in ((unet, dtype), (text_encoder, dtype), (vae, vae_dtype)):
        nn.Module.to(module.eval().requires_grad_(False), device, own)  # diffusers' own `to` warns
    return LoadedCheckpoint(
        sha256="",
        device=device,
        conditioner=Conditioner(
            ClipTextEncoder(text_encoder),
            cast(Tokenizer, load_tokenizer()),
            device,
            loras=RowLoras(text_encoder, lambda lora: lora.text_encoder),
            embeddings=embeddings,
        ),
        denoiser=Denoiser(unet, scaled_linear()),
        encoder=Encoder(vae),
        decoder=Decoder(vae),
        loras=LoraStore(loras, layers(unet, text_encoder), device=device, dtype=dtype),
        embeddings=embeddings,
    )


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and its header's metadata. Raises CheckpointError, without the path."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name} is not a .safetensors file; no other kind is loaded")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} where the configuration says it is")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _check_family(shapes)
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is not a valid safetensors file: {error}") from error


def _check_family(shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not sd1.recognises(shapes):
        raise CheckpointError(
            "not a Stable Diffusion 1.x checkpoint in the original layout; SDXL, SD 2.x and others are "
            "not available in this version"
        )
    sd1.refuse_variants(shapes)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError("device is cuda, but this process sees no CUDA device")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise CheckpointError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
