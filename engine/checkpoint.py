"""Checkpoint files -> what rows run on. Local files only, safetensors only, nothing from the network."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.codec import Decoder, Encoder
from engine.conditioning import Conditioner, Tokenizer
from engine.denoiser import Denoiser
from engine.embeddings import NO_EMBEDDINGS, Library, load_embeddings
from engine.families import sd1, told
from engine.families.family import Kind, Modules
from engine.header import Header, read_header
from engine.lora.file import Lora, LowRank, layers
from engine.lora.layers import RowLoras
from engine.lora.store import LoraSettings, LoraStore
from engine.protocol import CheckpointError
from engine.schedules import scaled_linear
from engine.text_encoder import ClipTextEncoder
from engine.tokenizer import load_tokenizer
from engine.upscalers.store import UpscalerSettings, UpscalerStore

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NO_LORAS = LoraSettings()
NO_UPSCALERS = UpscalerSettings()
PLAIN = Kind(family=sd1.FAMILY)

TEXT_LORAS: Sequence[Callable[[Lora], Mapping[str, LowRank]]] = (
    lambda lora: lora.text_encoder,
    lambda lora: lora.text_encoder_2,
)
"""What of a LoRA is for the first text encoder, and for the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCheckpoint:
    """Everything an operation needs of a checkpoint, on one device. `sha256` is the file's."""

    sha256: str
    kind: Kind
    device: torch.device
    conditioner: Conditioner
    denoiser: Denoiser
    encoder: Encoder
    decoder: Decoder
    loras: LoraStore
    embeddings: Library
    upscalers: UpscalerStore


def load_checkpoint(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: LoraSettings = NO_LORAS,
    embeddings: Path | None = None,
    upscalers: UpscalerSettings = NO_UPSCALERS,
) -> LoadedCheckpoint:
    """Read a .safetensors file in the original LDM layout.

    `dtype` "auto" is float16 on a GPU and float32 on a CPU. The VAE stays in float32 where the rest is
    float16, which it overflows. Replace the file by renaming only: on a CPU its weights are mapped.
    Raises CheckpointError with the reason, without the path.
    """
    target = _device(device)
    kind = told(_header(path))
    modules = kind.family.build(*read(path))
    _check_filled(modules)
    loaded = assemble(
        *modules,
        kind=kind if kind.prediction else replace(kind, prediction="epsilon"),
        device=target,
        dtype=_dtype(dtype, target),
        loras=loras,
        embeddings=load_embeddings(embeddings, _width(modules)) if embeddings else NO_EMBEDDINGS,
    )
    if kind.prediction is None and not predicts_noise(loaded):
        kind = replace(kind, prediction="v")
        loaded = replace(loaded, kind=kind, denoiser=_denoiser(modules[0], kind))
    store = UpscalerStore(upscalers, device=target, dtype=_dtype(dtype, target))
    return replace(loaded, sha256=_sha256(path), upscalers=store)


@torch.inference_mode()
def predicts_noise(checkpoint: LoadedCheckpoint) -> bool:
    """Whether a UNet taken for an ε-predicting one is one. Costs one evaluation of a 256-pixel picture.

    At the highest σ nearly all of x is noise: who predicts it leaves little of x in denoised, who predicts
    v, which there is nearly the negative picture, leaves all of it.
    """
    (cond,) = checkpoint.conditioner([(("", 1.0),)], 1)
    sigma = checkpoint.denoiser.levels.sigma_max
    x = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0)).to(checkpoint.device) * sigma
    (denoised,) = checkpoint.denoiser(
        x=[x], sigma=[sigma], conds=[[(cond, 1.0)]], uncond=[None], guidance_scale=[1.0]
    )
    return bool(denoised.norm() < x.norm() / 2)


def assemble(
    unet: nn.Module,
    vae: nn.Module,
    *text_encoders: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    kind: Kind = PLAIN,
    loras: LoraSettings = NO_LORAS,
    embeddings: Library = NO_EMBEDDINGS,
) -> LoadedCheckpoint:
    """A checkpoint from its modules, moved to where and how they shall run: no digest, no upscalers."""
    vae_dtype = torch.float32 if dtype is torch.float16 else dtype
    for module in (unet, vae, *text_encoders):
        own = vae_dtype if module is vae else dtype
        nn.Module.to(module.eval().requires_grad_(False), device, own)  # diffusers' own `to` warns
    return LoadedCheckpoint(
        sha256="",
        kind=kind,
        device=device,
        conditioner=Conditioner(
            [ClipTextEncoder(m, part) for m, part in zip(text_encoders, kind.family.texts, strict=True)],
            cast(Tokenizer, load_tokenizer()),
            device,
            loras=[RowLoras(m, part) for m, part in zip(text_encoders, TEXT_LORAS, strict=False)],
            embeddings=embeddings,
        ),
        denoiser=_denoiser(unet, kind),
        encoder=Encoder(vae),
        decoder=Decoder(vae),
        loras=LoraStore(loras, layers(unet, *text_encoders), device=device, dtype=dtype),
        embeddings=embeddings,
        upscalers=UpscalerStore(NO_UPSCALERS, device=device, dtype=dtype),
    )


def _denoiser(unet: nn.Module, kind: Kind) -> Denoiser:
    levels = scaled_linear(kind.family.align_your_steps, zero_terminal_snr=kind.zero_terminal_snr)
    return Denoiser(unet, levels, kind.prediction or "epsilon")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors, mapped, and its header's metadata. Raises CheckpointError, without the path."""
    _header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is not a valid safetensors file: {error}") from error


def _header(path: Path) -> Header:
    """Decided by suffix and content both: a pickle is refused under every name, and never opened as one."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name} is not a .safetensors file; no other kind is loaded")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} where the configuration says it is")
    return read_header(path)


def _check_filled(modules: Modules) -> None:
    """Every tensor has come from the file, or been made: none is a mere shape."""
    for module in modules:
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if tensor.is_meta:
                raise CheckpointError(f"{type(module).__name__} has no values for {name}")


def _width(modules: Modules) -> int:
    """Channels of a token's embedding, of all text encoders together."""
    return sum(int(cast(Any, module).config.hidden_size) for module in modules[2:])


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
