"""Families of checkpoints, one module each; `told` picks a file's from its header, and nowhere else.

A new family is a module with a `FAMILY`, and a line in FAMILIES.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from engine.families import sd1, sd2, sdxl, sdxl_refiner
from engine.families.family import (
    FIRST_LAYER,
    INPAINTING_CHANNELS,
    LATENT_CHANNELS,
    Family,
    Kind,
    Shapes,
    read_sizes,
)
from engine.header import Header
from engine.protocol import CheckpointError

FAMILIES: Sequence[Family] = (sd1.FAMILY, sd2.FAMILY, sdxl.FAMILY, sdxl_refiner.FAMILY)

KNOWN_OTHERS: Mapping[str, str] = MappingProxyType(
    {
        "model.diffusion_model.joint_blocks.": "a Stable Diffusion 3",
        "model.diffusion_model.double_blocks.": "a Flux",
        "double_blocks.": "a Flux",
    }
)
"""How names begin in files of families that have no module yet."""


PREDICTION_TYPES: Mapping[str, str | None] = MappingProxyType(
    {"": None, "epsilon": "epsilon", "v": "v", "v_prediction": "v"}
)
"""What the metadata may say, and nothing."""


def told(header: Header) -> Kind:
    """What a file is, from its header alone. Raises CheckpointError for what no family can run.

    Inpainting checkpoints that do not say what they predict are ε-predicting ones, as the published are.
    """
    shapes = header.shapes
    for prefix, name in KNOWN_OTHERS.items():
        if any(tensor.startswith(prefix) for tensor in shapes):
            raise CheckpointError(f"this is {name} checkpoint; this version runs {_names()}")
    family = next((each for each in FAMILIES if each.recognises(shapes)), None)
    if family is None:
        raise CheckpointError(f"not a checkpoint of {_names()} in the original layout")
    _check_parts(shapes)
    inpainting = shapes[FIRST_LAYER][1] == INPAINTING_CHANNELS
    prediction = _prediction(header) or family.prediction
    kind = Kind(
        family=family,
        prediction="epsilon" if inpainting and prediction is None else prediction,
        zero_terminal_snr="ztsnr" in shapes,
        inpainting=inpainting,
        sizes=read_sizes(header.metadata),
    )
    if kind.zero_terminal_snr and kind.prediction == "epsilon":
        raise CheckpointError("the file is marked ztsnr but not v_pred: at no signal, noise predicts nothing")
    return kind


def _prediction(header: Header) -> str | None:
    """What the file says, in its metadata or by a tensor named v_pred; None if it says nothing."""
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    if said not in PREDICTION_TYPES:
        raise CheckpointError(f"modelspec.prediction_type {said[:40]!r} is not available in this version")
    return "v" if "v_pred" in header.tensors else PREDICTION_TYPES[said]


def _names() -> str:
    return ", ".join(family.name for family in FAMILIES)


def _check_parts(shapes: Shapes) -> None:
    first = shapes.get(FIRST_LAYER)
    if first is None:
        raise CheckpointError("the file has no UNet: it may be a VAE, a LoRA or an embedding")
    if len(first) != 4 or first[1] not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        raise CheckpointError(
            f"the UNet's first layer is {first}; this version runs those of {LATENT_CHANNELS} input "
            f"channels, and of {INPAINTING_CHANNELS} for inpainting"
        )
    if not any(name.startswith("first_stage_model.decoder.") for name in shapes):
        raise CheckpointError("the file has no VAE; this version needs one inside the checkpoint")
