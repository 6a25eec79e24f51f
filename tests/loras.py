"""Random LoRAs in the layouts of published files, and the weights they make, merged by hand."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.ldm_layout import ldm_unet

Change = dict[str, Tensor]
"""down, up, and where there are any mid and alpha."""
Changes = dict[str, Change]
"""By layer: `unet.…` or `text_encoder.…`, diffusers' and transformers' own paths."""


def random_changes(
    unet: nn.Module,
    text_encoder: nn.Module,
    *,
    seed: int,
    rank: int = 3,
    only: Iterable[str] = ("",),
    strength: float = 0.3,
) -> Changes:
    """A change of every linear layer and convolution whose name contains one of `only`."""
    generator = torch.Generator().manual_seed(seed)
    changes: Changes = {}
    for part, module in (("unet", unet), ("text_encoder", text_encoder)):
        for path, layer in module.named_modules():
            name = f"{part}.{path}"
            if isinstance(layer, nn.Linear | nn.Conv2d) and any(text in name for text in only):
                out, into, *kernel = layer.weight.shape
                ones = [1] * len(kernel)
                size = into * (kernel[0] ** 2 if kernel else 1)
                down = torch.randn(rank, into, *kernel, generator=generator) / size**0.5
                up = torch.randn(out, rank, *ones, generator=generator) * strength
                changes[name] = {"down": down, "up": up, "alpha": torch.tensor(rank / 2)}
    return changes


def merge(unet: nn.Module, text_encoder: nn.Module, changes: Changes, *weights: float) -> None:
    """Add the changes to the weights, computed in float64: `weights` are the UNet's and the encoder's."""
    parts = {"unet": (unet, weights[0]), "text_encoder": (text_encoder, weights[-1])}
    for name, change in changes.items():
        part, _, path = name.partition(".")
        module, weight = parts[part]
        target = module.get_submodule(path).weight
        scale = weight * float(change.get("alpha", len(change["down"]))) / len(change["down"])
        assert isinstance(target, Tensor)
        target.data = (target.double() + scale * product(change).view_as(target)).to(target.dtype)


def product(change: Change) -> Tensor:
    down, up = change["down"].double(), change["up"].double()
    if "mid" in change:
        return torch.einsum("oa,abhw,bi->oihw", up.flatten(1), change["mid"].double(), down.flatten(1))
    return torch.einsum("or,r...->o...", up.flatten(1), down)


def kohya(changes: Changes) -> dict[str, Tensor]:
    return _keyed({f"{_kohya_prefix(name)}{_underscored(name)}": c for name, c in changes.items()})


def kohya_ldm(changes: Changes, unet: nn.Module) -> dict[str, Tensor]:
    """The UNet's blocks as the original numbers them, by the rules that checkpoints are written by."""
    keys = list(unet.state_dict())
    places = {
        keys[int(i)]: name for name, i in ldm_unet({k: torch.tensor(i) for i, k in enumerate(keys)}).items()
    }
    renamed = {}
    for name, change in changes.items():
        part, _, path = name.partition(".")
        place = places[f"{path}.weight"].removesuffix(".weight") if part == "unet" else path
        renamed[f"{part}.{place}"] = change
    return kohya(renamed)


def peft(changes: Changes) -> dict[str, Tensor]:
    """diffusers' own: no alpha, which is then the rank."""
    tensors = {}
    for name, change in changes.items():
        name = name.replace("text_encoder.", "text_encoder.text_model.")
        tensors[f"{name}.lora_A.weight"] = change["down"]
        tensors[f"{name}.lora_B.weight"] = change["up"]
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def content(path: Path) -> bytes:
    """A file's tensors as bytes: all behind its header."""
    data = path.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


def _keyed(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    endings = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "alpha": "alpha"}
    return {f"{layer}.{endings[part]}": tensor for layer, c in changes.items() for part, tensor in c.items()}


def _kohya_prefix(name: str) -> str:
    return "lora_unet_" if name.startswith("unet.") else "lora_te_text_model_"


def _underscored(name: str) -> str:
    return name.partition(".")[2].replace(".", "_")
