"""What LoRA files call a model's layers and a change's parts. Standard library only.

Trainers write kohya's names (`lora_unet_…`, with diffusers' blocks or the original LDM ones) or diffusers'
own (`unet.…`, older and newer). All are built from the live model's layers, so a file's name is either one
of them or unknown: nothing is guessed.
"""

import re
from collections.abc import Iterable, Iterator
from types import MappingProxyType

PARTS = MappingProxyType(
    {
        ".lora_down.weight": "down",
        ".lora_up.weight": "up",
        ".lora_mid.weight": "mid",
        ".alpha": "alpha",
        ".lora_A.weight": "down",
        ".lora_B.weight": "up",
        ".lora_A.default.weight": "down",
        ".lora_B.default.weight": "up",
        ".lora.down.weight": "down",
        ".lora.up.weight": "up",
        ".lora_linear_layer.down.weight": "down",
        ".lora_linear_layer.up.weight": "up",
        "_lora.down.weight": "down",
        "_lora.up.weight": "up",
    }
)
"""How the key of a tensor ends, and which part of a low-rank change it then is."""

REFUSED = (
    ("LoHa", re.compile(r"\.hada_[wt]")),
    ("LoKr", re.compile(r"\.lokr_[wt]")),
    ("DoRA", re.compile(r"\.dora_scale$|lora_magnitude_vector")),
    ("OFT", re.compile(r"\.b?oft_")),
    ("IA3", re.compile(r"\.on_input$|\.ia3_l")),
    ("GLoRA", re.compile(r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$")),
    ("full difference", re.compile(r"\.diff(_b)?$")),
    ("norm difference", re.compile(r"\.[wb]_norm$")),
    ("LoRA with biases", re.compile(r"\.lora_B\.(default\.)?bias$")),
    ("LoRA with bundled embeddings", re.compile(r"^bundle_emb\.")),
)
"""Kinds of networks that are no plain low-rank change, told from their keys."""

_BLOCK = re.compile(
    r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_LDM_ENDS = MappingProxyType(
    {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
    }
)
_LDM_RESNET = MappingProxyType(
    {
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
)
_ATTENTION = re.compile(r"(.+\.attn\d)\.(to_[qkv]|to_out)(\.0)?")
_SELF_ATTENTION = re.compile(r"(.+\.self_attn)\.(q|k|v|out)_proj")


def split(key: str) -> tuple[str, str] | None:
    """A tensor's key as (name of the layer, part); None if it ends like no part."""
    for ending, part in PARTS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return None


def refused_kind(keys: Iterable[str]) -> str | None:
    """The kind of network that these keys give away, if it is one that is refused."""
    for key in keys:
        for kind, pattern in REFUSED:
            if pattern.search(key):
                return kind
    return None


def unet_names(path: str, resnets: int) -> Iterator[str]:
    """Every name that a file may have for the layer at `path` of diffusers' UNet.

    `resnets` is their number in one down block, which the LDM numbering depends on.
    """
    paths = [path]
    if attention := _ATTENTION.fullmatch(path):
        paths.append(f"{attention[1]}.processor.{attention[2]}")
    for name in paths:
        yield from (name, f"unet.{name}", f"base_model.model.{name}")
    for name in (path, *ldm_paths(path, resnets)):
        yield "lora_unet_" + name.replace(".", "_")


def text_names(path: str, number: int = 0, encoders: int = 1) -> Iterator[str]:
    """Every name that a file may have for the layer at `path` of a CLIP text transformer.

    It is the `number`-th of a model's `encoders`, from 0.
    """
    paths = [path]
    if attention := _SELF_ATTENTION.fullmatch(path):
        paths.append(f"{attention[1]}.to_{attention[2]}")
    model = "text_encoder_2" if number else "text_encoder"
    for name in paths:
        yield f"{model}.text_model.{name}"
        yield f"{model}.{name}"
    flat = path.replace(".", "_")
    yield f"lora_te{number + 1}_text_model_{flat}"
    if encoders == 1:
        yield f"lora_te_text_model_{flat}"


def ldm_paths(path: str, resnets: int) -> list[str]:
    """Where the layer at `path` of diffusers' UNet may stand in the original one; [] for unknown layers."""
    if path in _LDM_ENDS:
        return [_LDM_ENDS[path]]
    match = _BLOCK.fullmatch(path)
    if match is None:
        return []
    kind, block, part, index, rest = match.groups()
    first, layer = int(block or 0) * (resnets + 1), int(index)
    rest = _LDM_RESNET.get(rest, rest) if part == "resnets" else rest
    if kind == "mid_block":
        return [f"middle_block.{2 * layer if part == 'resnets' else 2 * layer + 1}.{rest}"]
    if part == "downsamplers":
        return [f"input_blocks.{1 + first + resnets}.0.op"]
    if part == "upsamplers":  # behind the attention, in blocks that have one
        return [f"output_blocks.{first + resnets}.{place}.{rest}" for place in (1, 2)]
    row = f"input_blocks.{1 + first + layer}" if kind == "down_blocks" else f"output_blocks.{first + layer}"
    return [f"{row}.{0 if part == 'resnets' else 1}.{rest}"]
