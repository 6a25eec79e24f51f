"""What is in a picture, in words: BLIP (Li et al. 2022), from a local folder in the published layout."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from engine.header import InvalidFile
from engine.images import read_picture
from engine.protocol import CheckpointError, JobFailed, NotOffered, OutOfMemory
from engine.weights import TensorFile

FEWEST, MOST = 24, 48
"""Tokens of a caption: AUTOMATIC1111's defaults."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: Any
    processor: Any
    tokenizer: Any


class Captioner:
    """Captions one picture at a time, in a thread of its own. Loads its model when it is first asked.

    Runs in `dtype`, on a CPU in float32. Raises CheckpointError if `folder` does not hold a BLIP model in
    safetensors; without a folder, each caption raises NotOffered.
    """

    def __init__(self, folder: Path | None, *, device: torch.device, dtype: torch.dtype) -> None:
        if folder:
            _check(folder)
        self._folder = folder
        self._device = device
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="captioner")
        self._loaded: _Loaded | None = None

    async def caption(self, image: bytes) -> str:
        """The caption of a picture file. Cancelling the call drops it unless it has begun.

        Raises InvalidJob for a picture that cannot be read, and JobFailed and its kinds.
        """
        if self._folder is None:
            raise NotOffered(
                "interrogate: no captioner is configured. A checkpoint's captioner_dir names one."
            )
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._caption, image)

    def _caption(self, image: bytes) -> str:
        picture = read_picture(image, "image")
        try:
            self._loaded = self._loaded or self._load()
            return _captioned(self._loaded, picture)
        except torch.OutOfMemoryError:
            raise OutOfMemory("the captioner does not fit in the device's memory now") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise JobFailed(f"the captioner failed ({type(error).__name__})") from error

    def _load(self) -> _Loaded:
        # Imported here: few replicas need them.
        from transformers.models.bert.tokenization_bert import BertTokenizer
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
        from transformers.models.blip.modeling_blip import BlipForConditionalGeneration

        model = BlipForConditionalGeneration.from_pretrained(
            self._folder, local_files_only=True, use_safetensors=True, disable_mmap=True, dtype=self._dtype
        )
        return _Loaded(
            model.to(self._device).eval(),
            BlipImageProcessorPil.from_pretrained(self._folder, local_files_only=True),
            BertTokenizer.from_pretrained(self._folder, local_files_only=True),
        )


def _check(folder: Path) -> None:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "blip":
        raise CheckpointError("captioner_dir: the folder has no config.json of a BLIP model")
    _check_weights(folder / "model.safetensors")
    for names in (("preprocessor_config.json",), ("tokenizer.json", "vocab.txt")):
        if not any((folder / name).is_file() for name in names):
            raise CheckpointError(f"captioner_dir: the folder has no {' or '.join(names)}")


def _check_weights(path: Path) -> None:
    try:
        with path.open("rb") as file:
            TensorFile(file).outlines()
    except OSError:
        raise CheckpointError(f"captioner_dir: the folder has no {path.name}") from None
    except InvalidFile as error:
        raise CheckpointError(f"captioner_dir: {path.name} is no valid file: {error}") from None


@torch.inference_mode()
def _captioned(loaded: _Loaded, picture: Image.Image) -> str:
    inputs = loaded.processor(images=picture, return_tensors="pt")
    pixels = inputs["pixel_values"].to(loaded.model.device, loaded.model.dtype)
    tokens = loaded.model.generate(pixel_values=pixels, num_beams=1, min_length=FEWEST, max_length=MOST)
    text: str = loaded.tokenizer.decode(tokens[0], skip_special_tokens=True)
    return text.strip()
