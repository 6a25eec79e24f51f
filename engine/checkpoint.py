"""Checkpoint files -> what rows run on. Local files only, safetensors only, nothing from the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from engine.attention import make_lean
from engine.codec import Decoder, Encoder
from engine.conditioning import Conditioner, Tokenizer
from engine.denoiser import Denoiser
from engine.embeddings import NO_EMBEDDINGS, Embeddings, load_embeddings
from engine.families import sd1, told
from engine.families.family import Kind, Modules, Weights
from engine.fp8 import check_device, quantise
from engine.header import InvalidFile
from engine.lora.file import Lora, LowRank, layers
from engine.lora.layers import RowLoras
from engine.lora.store import LoraSettings, LoraStore
from engine.protocol import CheckpointError, CheckpointLost, FolderKind
from engine.quality import EXACT, Quality
from engine.schedules import scaled_linear
from engine.text_encoder import ClipTextEncoder
from engine.tokenizer import load_tokenizer
from engine.weights import Digests, TensorFile

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

NO_LORAS = LoraSettings()
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
    modules: Modules
    conditioner: Conditioner
    denoiser: Denoiser
    encoder: Encoder
    decoder: Decoder
    loras: LoraStore
    embeddings: Embeddings
    quality: Quality = EXACT

    @property
    def bytes(self) -> int:
        """What the weights take on the device."""
        return sum(weight.nbytes for module in self.modules for weight in module.state_dict().values())

    def refreshed(self, kind: FolderKind) -> "LoadedCheckpoint":
        """This with its folder of LoRAs, or of embeddings, looked through again; itself if nothing changed.

        The models are the same. Rows that have this one finish with the embeddings that it has.
        """
        if kind == "loras":
            self.loras.refresh()
        embeddings = self.embeddings.rescanned() if kind == "embeddings" else self.embeddings
        if embeddings is self.embeddings:
            return self
        return replace(self, embeddings=embeddings, conditioner=self.conditioner.with_embeddings(embeddings))


def load_checkpoint(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    loras: LoraSettings = NO_LORAS,
    embeddings: Path | None = None,
    digests: Digests | None = None,
    quality: Quality = EXACT,
) -> LoadedCheckpoint:
    """Read a .safetensors file in the original LDM layout, into memory of its own.

    `dtype` "auto" is float16 on a GPU and float32 on a CPU. `digests` spares the hashing of a known file.
    Takes as much memory as the weights, also where those of `quality` take less, and one tensor's besides.
    Raises CheckpointError with the reason, without the path.
    """
    target = _device(device)
    with _opened(path) as file:
        outlines = file.outlines()
        kind = told(file.header)
        modules = kind.build()
        named = kind.family.named(outlines, modules)
        loaded = assemble(
            *modules,
            kind=kind,
            device=target,
            dtype=_dtype(dtype, target),
            loras=loras,
            embeddings=load_embeddings(embeddings, _width(modules)) if embeddings else NO_EMBEDDINGS,
        )
        loaded = in_quality(loaded, quality)
        sha256 = _fill(modules, named, file, digests or Digests())
    return _with_prediction(replace(loaded, sha256=sha256))


def swap_checkpoint(
    loaded: LoadedCheckpoint, path: Path, *, digests: Digests | None = None
) -> LoadedCheckpoint:
    """Another file's checkpoint in the modules of a loaded one, which must not be used any more.

    Parameters keep their addresses, device, dtype and quality, so graphs and compiled code stay; LoRAs and
    embeddings stay, prompts are encoded anew.
    Raises CheckpointError, with nothing changed, for a file that cannot be used or is of another
    architecture. After every other error the modules are of no use: CheckpointLost, where the file could not
    be read to its end.
    """
    with _opened(path) as file:
        outlines = file.outlines()
        kind = told(file.header)
        if not kind.same_modules(loaded.kind):
            raise CheckpointError(f"{path.name} is of another architecture than what is loaded")
        named = kind.family.named(outlines, loaded.modules)
        try:
            sha256 = _fill(loaded.modules, named, file, digests or Digests())
        except (InvalidFile, OSError, torch.OutOfMemoryError) as error:
            raise CheckpointLost(f"{path.name} could not be read to its end: {error}") from error
    swapped = _of_placed(loaded.modules, loaded.device, kind, loaded.loras, loaded.embeddings)
    swapped = _with_prediction(replace(swapped, sha256=sha256, quality=loaded.quality))
    swapped.denoiser.runs_like(loaded.denoiser)
    if loaded.denoiser.singly:
        make_strict(swapped)
    return swapped


def in_quality(loaded: LoadedCheckpoint, quality: Quality) -> LoadedCheckpoint:
    """An exact checkpoint in a class of quality; its modules are changed for it.

    Raises CheckpointError, with nothing changed, where the device cannot.
    """
    if quality.name == "fp8":
        check_device(loaded.device)
        quantise(loaded.modules[0])
    return replace(loaded, quality=quality)


def make_strict(loaded: LoadedCheckpoint) -> None:
    """From now on a picture's bits depend on nothing but its job, which shares no call with others."""
    loaded.denoiser.singly = loaded.conditioner.singly = True
    loaded.encoder.most = loaded.decoder.most = 1


def read_kind(path: Path) -> Kind:
    """What a file is, from its header alone. Raises CheckpointError."""
    with _opened(path) as file:
        file.outlines()
        return told(file.header)


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
    embeddings: Embeddings = NO_EMBEDDINGS,
) -> LoadedCheckpoint:
    """A checkpoint from its modules, moved to where and how they shall run; it has no digest.

    Those on the meta device get memory there, and no values. The VAE is in float32 where the rest is float16,
    which it overflows.
    """
    modules = (unet, vae, *text_encoders)
    for module in modules:
        place(module, device, torch.float32 if module is vae and dtype is torch.float16 else dtype)
    make_lean(unet)
    store = LoraStore(loras, layers(unet, *text_encoders), device=device, dtype=dtype)
    return _of_placed(modules, device, kind, store, embeddings)


def _of_placed(
    modules: Modules, device: torch.device, kind: Kind, loras: LoraStore, embeddings: Embeddings
) -> LoadedCheckpoint:
    """Of modules that are where and how they shall run. The conditioner's cache is empty."""
    unet, vae, *text_encoders = modules
    return LoadedCheckpoint(
        sha256="",
        kind=kind,
        device=device,
        modules=modules,
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
        loras=loras,
        embeddings=embeddings,
    )


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a module to where and how it shall run. Those of the meta device get memory, and no values."""
    module.eval().requires_grad_(False)
    if next(module.parameters()).is_meta:
        memory = {
            name: torch.empty_like(outline, device=device, dtype=dtype)
            for name, outline in module.state_dict().items()
        }
        module.load_state_dict(memory, assign=True)
    nn.Module.to(module, device, dtype)  # diffusers' own `to` warns
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d):
            weight = convolution.weight
            weight.data = weight.data.contiguous(memory_format=conv_layout(device))
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(f"{type(module).__name__} has no values for {name}")


def conv_layout(device: torch.device) -> torch.memory_format:
    """How a convolution's weights lie in memory, and what passes through follows: a CPU is no faster so."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _fill(modules: Modules, named: Sequence[Weights], file: TensorFile, digests: Digests) -> str:
    """Read the weights to where the modules have theirs. Returns the file's SHA-256, made meanwhile."""
    targets = [module.state_dict() for module in modules]
    wanted = [(own[name], to[name]) for own, to in zip(named, targets, strict=True) for name in own]
    with ThreadPoolExecutor(1) as hashing:
        sha256 = hashing.submit(digests.of, file)
        file.read_into(wanted)
        return sha256.result()


def _with_prediction(loaded: LoadedCheckpoint) -> LoadedCheckpoint:
    """What its UNet predicts found out, where the file does not say."""
    if loaded.kind.prediction:
        return loaded
    kind = replace(loaded.kind, prediction="epsilon" if predicts_noise(loaded) else "v")
    return replace(loaded, kind=kind, denoiser=_denoiser(loaded.modules[0], kind))


def _denoiser(unet: nn.Module, kind: Kind) -> Denoiser:
    levels = scaled_linear(kind.family.align_your_steps, zero_terminal_snr=kind.zero_terminal_snr)
    return Denoiser(unet, levels, kind.prediction or "epsilon")


@contextmanager
def _opened(path: Path) -> Iterator[TensorFile]:
    """Decided by suffix and content both: a pickle is refused under every name, and never opened as one.

    What the file turns out to be, inside too, is a CheckpointError.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path.name} is not a .safetensors file; no other kind is loaded")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path.name} where the configuration says it is")
    try:
        with path.open("rb") as file:
            yield TensorFile(file)
    except InvalidFile as error:
        raise CheckpointError(f"{path.name} is not a valid safetensors file: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({type(error).__name__})") from error


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
