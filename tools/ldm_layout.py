"""Writes diffusers' and transformers' modules as one file in the original LDM key layout.

This is the layout of the files that people download: the UNet below `model.diffusion_model.`, the
autoencoder below `first_stage_model.`. The text encoder of Stable Diffusion 1.x is below
`cond_stage_model.transformer.text_model.`, that of 2.x below `cond_stage_model.model.` under OpenCLIP's
names, and SDXL has one of each kind below `conditioner.embedders.`. The keys follow from rules, so any number
of blocks, layers and widths goes through, from a random model of a few kilobytes to Stable Diffusion 1.5.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

State = dict[str, torch.Tensor]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
SD2_TEXT_PREFIX = "cond_stage_model.model."
REFINER_TEXT_PREFIX = "conditioner.embedders.0.model."
SDXL_TEXT_PREFIXES = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")

_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_RESNET_PARTS = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_ATTENTION_PARTS = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}
_OPEN_CLIP_PARTS = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_OPEN_CLIP_ENDS = {
    "final_layer_norm.": "ln_final.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
}
_BLOCK = re.compile(
    r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?"
    r"(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def export_ldm(
    path: Path,
    unet: nn.Module,
    vae: nn.Module,
    *text_encoders: nn.Module,
    open_clip: str = "",
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes one `.safetensors`; a file already at `path` is replaced in one move.

    The only text encoder gets OpenCLIP's names behind the prefix `open_clip`, if that is given.
    """
    state = ldm_state(unet, vae, *text_encoders, open_clip=open_clip)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    new = path.with_name(path.name + ".new")
    save_file(tensors, new, metadata=dict(metadata or {}))
    new.chmod(0o644)
    new.replace(path)


def ldm_state(unet: nn.Module, vae: nn.Module, *text_encoders: nn.Module, open_clip: str = "") -> State:
    """All tensors of a checkpoint under their LDM keys; two text encoders are SDXL's."""
    state = {UNET_PREFIX + key: value for key, value in ldm_unet(unet.state_dict()).items()}
    state |= {VAE_PREFIX + key: value for key, value in ldm_vae(vae.state_dict()).items()}
    if len(text_encoders) == 1 and open_clip:
        return state | _open_clip(open_clip, text_encoders[0])
    if len(text_encoders) == 1:
        return state | _clip(TEXT_PREFIX, text_encoders[0])
    first, second = text_encoders
    return state | _clip(SDXL_TEXT_PREFIXES[0], first) | _open_clip(SDXL_TEXT_PREFIXES[1], second)


def _clip(prefix: str, text_encoder: nn.Module) -> State:
    state = text_encoder.state_dict()
    return {prefix + key.removeprefix("text_model."): value for key, value in state.items()}


def _open_clip(prefix: str, text_encoder: nn.Module) -> State:
    """OpenCLIP has query, key and value in one matrix, and the projection the other way round."""
    state = {key.removeprefix("text_model."): v for key, v in text_encoder.state_dict().items()}
    renamed = {}
    for key, value in state.items():
        if key == "text_projection.weight":
            renamed[prefix + "text_projection"] = value.T
        elif ".self_attn.q_proj." in key:
            parts = [state[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            renamed[prefix + _open_clip_key(key)] = torch.cat(parts)
        elif ".self_attn.k_proj." not in key and ".self_attn.v_proj." not in key:
            renamed[prefix + _open_clip_key(key)] = value
    return renamed


def _open_clip_key(key: str) -> str:
    if not key.startswith("encoder.layers."):
        return _renamed(key, _OPEN_CLIP_ENDS)
    layer, rest = key.removeprefix("encoder.layers.").split(".", 1)
    rest = rest.replace("self_attn.q_proj.", "attn.in_proj_")
    return f"transformer.resblocks.{layer}.{_renamed(rest, _OPEN_CLIP_PARTS)}"


def ldm_unet(state: Mapping[str, torch.Tensor]) -> State:
    """A diffusers UNet's tensors under their LDM keys, prefix left out."""
    layers = 1 + max(int(key.split(".")[3]) for key in state if key.startswith("down_blocks.0.resnets."))
    return {_unet_key(key, layers, state): value for key, value in state.items()}


def _unet_key(key: str, layers: int, state: Mapping[str, torch.Tensor]) -> str:
    """`layers` is the number of resnets of a down block; an up block has one more."""
    match = _BLOCK.fullmatch(key)
    if match is None:
        return _unet_end_key(key)
    kind, block, part, index, rest = match.groups()
    first, layer = int(block or 0) * (layers + 1), int(index)
    if part == "resnets":
        rest = _renamed(rest, _RESNET_PARTS)
    if kind == "mid_block":
        return f"middle_block.{2 * layer if part == 'resnets' else 2 * layer + 1}.{rest}"
    if part == "downsamplers":
        return f"input_blocks.{1 + first + layers}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        place = 2 if f"up_blocks.{block}.attentions.0.norm.weight" in state else 1
        return f"output_blocks.{first + layers}.{place}.{rest}"
    row = f"input_blocks.{1 + first + layer}" if kind == "down_blocks" else f"output_blocks.{first + layer}"
    return f"{row}.{0 if part == 'resnets' else 1}.{rest}"


def _unet_end_key(key: str) -> str:
    new = _renamed(key, _UNET_ENDS)
    if new == key:
        raise ValueError(f"no place in the LDM layout for the UNet key {key!r}")
    return new


def ldm_vae(state: Mapping[str, torch.Tensor]) -> State:
    """A diffusers AutoencoderKL's tensors under their LDM keys, prefix left out."""
    ups = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("decoder.up_blocks."))
    renamed = {}
    for key, value in state.items():
        new = _vae_key(key, ups)
        is_projection = ".mid.attn_" in new and value.ndim == 2
        renamed[new] = value[:, :, None, None] if is_projection else value
    return renamed


def _vae_key(key: str, ups: int) -> str:
    """`ups` is the number of the decoder's blocks, which LDM counts from the picture's side."""
    side, _, inner = key.partition(".")
    match = _BLOCK.fullmatch(inner)
    if match is None:
        return key.replace("conv_norm_out.", "norm_out.")
    kind, block, part, index, rest = match.groups()
    rest = rest.replace("conv_shortcut.", "nin_shortcut.")
    if kind == "mid_block":
        if part == "resnets":
            return f"{side}.mid.block_{int(index) + 1}.{rest}"
        return f"{side}.mid.attn_{int(index) + 1}.{_renamed(rest, _VAE_ATTENTION_PARTS)}"
    level = f"down.{block}" if kind == "down_blocks" else f"up.{ups - 1 - int(block)}"
    if part == "resnets":
        return f"{side}.{level}.block.{index}.{rest}"
    return f"{side}.{level}.{part.removesuffix('rs')}.{rest}"


def _renamed(key: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
