"""Checkpoint files -> what rows run on. Local files only, safetensors only, nothing from the network."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.codec import Decoder, Encoder
from engine.conditioning import Conditioner, Tokenizer
from engine.denoiser import Denoiser
from engine.families import sd1
from engine.protocol import CheckpointError
from engine.schedules import scaled_linear
from engine.tokenizer import load_tokenizer

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """Everything an operation needs of a checkpoint, on one device. `sha256` is the file's."""

    sha256: str
    device: torch.device
    conditioner: Conditioner
    denoiser: Denoiser
    encoder: Encoder
    decoder: Decoder


class ClipTextEncoder:
    """CLIP's text transformer with access to its inner layers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.num_layers: int = model.config.num_hidden_layers

    def hidden_states(self, tokens: Tensor, skip: int) -> Tensor:
        states = self._model(tokens, output_hidden_states=True).hidden_states
        normed: Tensor = self._model.final_layer_norm(states[-skip])
        return normed


def load_checkpoint(path: Path, *, device: str = "auto", dtype: str = "auto") -> LoadedCheckpoint:
    """Read a .safetensors file in the original LDM layout.

    `dtype` "auto" is float16 on a GPU and float32 on a CPU. The VAE stays in float32 where the rest is
    float16, which it overflows. Replace the file by renaming only: on a CPU its weights are mapped.
    Raises CheckpointError with the reason, without the path.
    """
    target = _device(device)
    unet, vae, text_encoder = sd1.build(*read(path))
    return assemble(unet, vae, text_encoder, device=target, dtype=_dtype(dtype, target), sha256=_sha256(path))


def assemble(
    unet: nn.Module,
    vae: nn.Module,
    text_encoder: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    sha256: str = "",
) -> LoadedCheckpoint:
    """A checkpoint from its modules, moved to where and how they shall run."""
    vae_dtype = torch.float32 if dtype is torch.float16 else dtype
    for module, own in ((unet, dtype), (text_encoder, dtype), (vae, vae_dtype)):
        nn.Module.to(module.eval().requires_grad_(False), device, own)  # diffusers' own `to` warns
    return LoadedCheckpoint(
        sha256=sha256,
        device=device,
        conditioner=Conditioner(ClipTextEncoder(text_encoder), cast(Tokenizer, load_tokenizer()), device),
        denoiser=Denoiser(unet, scaled_linear()),
        encoder=Encoder(vae),
        decoder=Decoder(vae),
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
