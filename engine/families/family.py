"""What a family of checkpoints is: plain data, and how its files become modules."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from engine.protocol import CheckpointError
from engine.schedules import ALIGN_YOUR_STEPS_SD1

Weights = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
Modules = tuple[nn.Module, ...]
"""UNet, VAE, then the text encoders in the family's order."""

ARCHITECTURE_KEY = "atelier.architecture"
"""Header entry of a file whose sizes are not its family's: JSON of what differs, by part."""
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 9
DIFFUSERS_ATTENTION_ONCE = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
"""What diffusers called the layers of a VAE's attention, and how now."""
SHOWN = 3
"""How many of a file's faults an error names."""

VAE: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": 512,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    }
)
CLIP_L: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """One text encoder of a family: where it is in a file, and what of it conditions the UNet.

    `weights` takes the file's tensors and the number of layers, and answers with the encoder's own names.
    `pad` fills a chunk behind its first end token; None: the end token again. `layer` is counted from the
    last, which is 1; None: the job's clip skip. `norm`: the final layer norm is applied to it. `pooled`: the
    projected state at the end token is conditioning too.
    """

    name: str
    config: Mapping[str, Any]
    weights: Callable[[Weights, int], dict[str, Tensor]]
    pad: int | None = None
    layer: int | None = None
    norm: bool = True
    pooled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Checkpoints of one architecture. `marks` are tensors of which a file of it has all of one set.

    `prediction` is "epsilon" or "v" where the file says nothing; None: it has to be found out by evaluating.
    `zero_empty_negative`: an empty negative prompt is conditioning of zeros. `aesthetic_scores`: of pictures
    as the prompt and as the negative prompt say, where the UNet is conditioned on that.
    """

    name: str
    marks: Sequence[frozenset[str]]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: Sequence[TextPart]
    prediction: str | None = "epsilon"
    align_your_steps: Sequence[float] = ALIGN_YOUR_STEPS_SD1
    zero_empty_negative: bool = False
    aesthetic_scores: tuple[float, float] | None = None

    @property
    def latent_scale(self) -> float:
        """What tells families' latents apart: one's cannot be read by another where it differs."""
        return float(self.vae["scaling_factor"])

    def recognises(self, shapes: Shapes) -> bool:
        """Whether a file with these tensors is of this family, told from its header alone."""
        return any(marks <= shapes.keys() for marks in self.marks)

    def named(self, weights: Weights, modules: Modules) -> Sequence[Weights]:
        """A file's tensors under each module's own names, as views of them.

        Raises CheckpointError unless they are the modules' tensors, all of them and in their shapes.
        """
        unet, vae, *text_encoders = modules
        parts = ["UNet", "VAE", *(text.name.replace("_", " ") for text in self.texts)]
        named = [
            _converted(convert_ldm_unet_checkpoint, weights, cast(Any, unet).config, "UNet"),
            _vae_weights(weights, vae),
            *(
                _converted(text.weights, weights, cast(Any, module).config.num_hidden_layers, part)
                for text, module, part in zip(self.texts, text_encoders, parts[2:], strict=True)
            ),
        ]
        for part, own, module in zip(parts, named, modules, strict=True):
            _check_fit(part, own, module.state_dict())
        return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a file is: its family, and what the files of that differ in.

    `prediction` None has to be found out by evaluating. `inpainting`: the UNet has nine channels of input.
    `sizes` is JSON of what differs from the family's, by part.
    """

    family: Family
    prediction: str | None = "epsilon"
    zero_terminal_snr: bool = False
    inpainting: bool = False
    sizes: str = "{}"

    def same_modules(self, other: "Kind") -> bool:
        """Whether the weights of one fit into the modules of the other and mean the same there."""
        mine, others = ((kind.family.name, kind.inpainting, kind.sizes) for kind in (self, other))
        return mine == others

    def build(self) -> Modules:
        """Modules on the meta device: their tensors have shapes, but values only where no file has them."""
        sizes = json.loads(self.sizes)
        channels = {"in_channels": INPAINTING_CHANNELS if self.inpainting else LATENT_CHANNELS}
        with torch.device("meta"):
            unet = UNet2DConditionModel(**{**self.family.unet, **sizes.get("unet", {}), **channels})
        return (
            unet,
            self.build_vae(),
            *(_text_encoder(part, sizes.get(part.name, {})) for part in self.family.texts),
        )

    def build_vae(self) -> nn.Module:
        """On the meta device."""
        with torch.device("meta"):
            vae: nn.Module = AutoencoderKL(**{**self.family.vae, **json.loads(self.sizes).get("vae", {})})
        return vae


def named_vae(weights: Weights, vae: nn.Module) -> Weights:
    """The tensors of a VAE's own file under the module's names, in the original layout or in diffusers'.

    Raises CheckpointError unless they are the module's, all of them and in their shapes.
    """
    own = _vae_weights(weights, vae)
    _check_fit("VAE", own, vae.state_dict())
    return own


def _vae_weights(weights: Weights, vae: nn.Module) -> Weights:
    if not any(name.startswith("decoder.up_blocks.") for name in weights):
        return _converted(convert_ldm_vae_checkpoint, weights, cast(Any, vae).config, "VAE")
    named = {}
    for name, tensor in weights.items():
        for old, new in DIFFUSERS_ATTENTION_ONCE:
            name = name.replace(old, new)
        named[name] = tensor
    return named


def read_sizes(metadata: Mapping[str, str]) -> str:
    """A header's `Kind.sizes`, in one form whatever the order of its keys. Raises CheckpointError."""
    try:
        sizes = json.loads(metadata.get(ARCHITECTURE_KEY, "{}"))
    except ValueError:
        sizes = None
    if not (isinstance(sizes, dict) and all(isinstance(part, dict) for part in sizes.values())):
        raise CheckpointError(f"the header's {ARCHITECTURE_KEY} is no JSON object of objects")
    return json.dumps(sizes, sort_keys=True)


def _converted(
    convert: Callable[[Weights, Any], dict[str, Tensor]], weights: Weights, config: Any, part: str
) -> dict[str, Tensor]:
    try:
        return convert(dict(weights), config)
    except KeyError as error:
        raise CheckpointError(f"the {part} does not fit the architecture: it has no {error}") from error
    except (IndexError, ValueError) as error:
        raise CheckpointError(f"the {part} does not fit the architecture: it has other shapes") from error


def _text_encoder(part: TextPart, sizes: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        module = text_module(part, sizes)
    embeddings = getattr(module, "text_model", module).embeddings
    positions = torch.arange(module.config.max_position_embeddings)[None]
    embeddings.register_buffer("position_ids", positions, persistent=False)
    built: nn.Module = module
    return built


def text_module(part: TextPart, sizes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A text encoder with random weights; `sizes` are what differs from the family's."""
    config = CLIPTextConfig(**{**part.config, **sizes})
    return (CLIPTextModelWithProjection if part.pooled else CLIPTextModel)(config)


def _check_fit(part: str, weights: Weights, own: Weights) -> None:
    """Strict: a tensor too few, too many, of another shape or not of floats is an error."""
    misfits = {
        name: _misfit(weights.get(name), own.get(name)) for name in sorted(weights.keys() | own.keys())
    }
    wrong = [f"{name} {misfit}" for name, misfit in misfits.items() if misfit]
    if wrong:
        raise CheckpointError(f"the {part} does not fit the architecture: {'; '.join(wrong[:SHOWN])}")


def _misfit(stored: Tensor | None, own: Tensor | None) -> str:
    if stored is None:
        return "is missing"
    if own is None:
        return "is unknown"
    if stored.shape != own.shape:
        return f"is {tuple(stored.shape)}, not {tuple(own.shape)}"
    return "" if stored.is_floating_point() else f"is stored as {str(stored.dtype)[6:]}"
