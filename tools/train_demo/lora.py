"""A small LoRA for the demo checkpoint, trained on pictures of another style.

The file has kohya's keys: `lora_unet_…` and `lora_te_…`, each with `lora_down`, `lora_up`, `alpha`.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tools.train_demo.architecture import text_model
from tools.train_demo.denoiser import Model

RANK, ALPHA = 4, 4.0


class LowRank(nn.Module):
    """A linear layer or convolution plus a low-rank change of it."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int = RANK) -> None:
        super().__init__()
        self.base = base
        self.scale = ALPHA / rank
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, rank, bias=False)
            self.up = nn.Linear(rank, base.out_features, bias=False)
        else:
            size, stride, padding = base.kernel_size[0], base.stride[0], int(base.padding[0])
            self.down = nn.Conv2d(base.in_channels, rank, size, stride, padding, bias=False)
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The base's output plus the change."""
        change: torch.Tensor = self.up(self.down(x))
        out: torch.Tensor = self.base(x)
        return out + self.scale * change


def targets(model: Model) -> dict[str, tuple[nn.Module, str]]:
    """kohya's name of every layer to change -> its parent module and its name in there."""
    found = {}
    for prefix, root in (("lora_unet", model.unet), ("lora_te_text_model", model.text_encoder)):
        top = text_model(root) if prefix.startswith("lora_te") else root
        for path, module in top.named_modules():
            for name, child in module.named_children():
                if isinstance(child, nn.Linear | nn.Conv2d) and _wanted(f"{path}.{name}"):
                    full = f"{path}.{name}".lstrip(".").replace(".", "_")
                    found[f"{prefix}_{full}"] = (module, name)
    return found


def _wanted(path: str) -> bool:
    """Attention blocks with their projections, and the 3×3 convolutions of resnets."""
    return (
        ".attentions." in path
        or path.startswith("encoder.layers.")
        or (".resnets." in path and path.endswith(("conv1", "conv2")))
    )


def attach(model: Model) -> dict[str, LowRank]:
    """Freezes a model and adds an untrained low-rank change to each target."""
    model.requires_grad_(False)
    layers = {}
    for name, (parent, child) in targets(model).items():
        layers[name] = LowRank(getattr(parent, child))
        setattr(parent, child, layers[name])
    return layers


def save(layers: dict[str, LowRank], path: Path, title: str) -> None:
    """Writes the changes as fp16 in kohya's layout."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.lora_down.weight"] = layer.down.weight.detach().half().contiguous()
        tensors[f"{name}.lora_up.weight"] = layer.up.weight.detach().half().contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA).half()
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": json.dumps({"conv_dim": str(RANK), "conv_alpha": str(ALPHA)}),
        "ss_output_name": title,
        "modelspec.license": "Apache-2.0",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)


@torch.no_grad()
def merge(path: Path, unet: nn.Module, text_encoder: nn.Module, weight: float) -> None:
    """Adds `weight` × a file's changes to the weights of a UNet and a text encoder."""
    state = {key: value.float() for key, value in load_file(path).items()}
    roots = {"lora_unet_": unet, "lora_te_text_model_": text_model(text_encoder)}
    for prefix, root in roots.items():
        for module_path, module in root.named_modules():
            name = prefix + module_path.replace(".", "_")
            if f"{name}.alpha" not in state:
                continue
            down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
            change = (up.flatten(1) @ down.flatten(1)).view_as(module.weight)
            module.weight += weight * state[f"{name}.alpha"] / len(down) * change
