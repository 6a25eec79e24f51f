"""Exported files: written in the LDM layout, read back through diffusers' own converter."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from transformers import CLIPTextModel

from tools.ldm_layout import TEXT_PREFIX, export_ldm
from tools.train_demo.architecture import (
    build_text_encoder,
    build_unet,
    build_vae,
    metadata,
    text_model,
)
from tools.train_demo.autoencoder import load as load_vae
from tools.train_demo.denoiser import load_average


@dataclass(frozen=True)
class Checkpoint:
    """The three models of a file, in float32, ready for use."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel


def export(work: Path, name: str, path: Path) -> None:
    """Writes the running average of training `name`, with the autoencoder, as fp16."""
    model = load_average(work / f"{name}.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    export_ldm(path, model.unet, load_vae(work), model.text_encoder, metadata=metadata())


def load(path: Path, device: str = "cpu") -> Checkpoint:
    """Reads a file; every tensor of every model must be there, and no other."""
    with safe_open(path, framework="pt") as file:
        architecture = json.loads(file.metadata()["atelier.architecture"])
        state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    unet = build_unet(architecture["unet"])
    vae = build_vae(architecture["vae"])
    encoder = build_text_encoder(architecture["text_encoder"])
    convert: Any = single_file_utils
    unet.load_state_dict(convert.convert_ldm_unet_checkpoint(dict(state), unet.config))
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(dict(state), vae.config))
    text = {k.removeprefix(TEXT_PREFIX): v for k, v in state.items() if k.startswith(TEXT_PREFIX)}
    text_model(encoder).load_state_dict(text)
    for module in (unet, vae, encoder):
        module.to(device).eval().requires_grad_(False)
    return Checkpoint(unet, vae, encoder)


def check_round_trip(work: Path, name: str, path: Path) -> None:
    """Raises unless a file holds exactly the fp16 values of what was trained."""
    model, loaded = load_average(work / f"{name}.pt"), load(path)
    pairs = (
        (model.unet, loaded.unet),
        (load_vae(work), loaded.vae),
        (model.text_encoder, loaded.text_encoder),
    )
    for before, after in pairs:
        theirs = after.state_dict()
        for key, value in before.state_dict().items():
            if not torch.equal(value.half().float(), theirs[key]):
                raise ValueError(f"{path.name}: {key} changed on the way")
