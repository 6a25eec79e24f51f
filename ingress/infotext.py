"""The infotext: a picture's parameters as one text, in the picture and in `info`.

prompt
Negative prompt: negative prompt
key: value, key: value, …

It cannot say every prompt. What is read is not what was written if the prompt begins with blanks or has a
line that begins with `Negative prompt:`, or if a second pass's prompt is a size (`512x768`), is its own key,
or begins with a quotation mark but holds nothing that has to be quoted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from ingress import prompts
from ingress.settings import Style

NEGATIVE = "Negative prompt:"
FEWEST_PAIRS = 3
"""In a last line with fewer there are none: it is a part of the prompt."""

PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "Prompt",
        "negative_prompt": "Negative prompt",
        "hr_prompt": "Hires prompt",
        "hr_negative_prompt": "Hires negative prompt",
    }
)
"""Request field -> key."""

DEFAULTS: Mapping[str, object] = MappingProxyType(
    {
        "Clip skip": "1",
        "Hires resize-1": 0,
        "Hires resize-2": 0,
        "Hires sampler": "Use same sampler",
        "Hires schedule type": "Use same scheduler",
        "Hires checkpoint": "Use same checkpoint",
        "Hires prompt": "",
        "Hires negative prompt": "",
        "Mask mode": "Inpaint masked",
        "Masked content": "original",
        "Inpaint area": "Whole picture",
        "Masked area padding": 32,
        "RNG": "GPU",
        "Schedule type": "Automatic",
        "Schedule max sigma": 0,
        "Schedule min sigma": 0,
        "Schedule rho": 0,
        "VAE Encoder": "Full",
        "VAE Decoder": "Full",
        "FP8 weight": "Disable",
        "Refiner switch by sampling steps": False,
    }
)
"""What the original reads where a key is missing."""

# Linear: a key is looked for only where its run of characters begins, and nothing is tried twice.
_PAIR = re.compile(
    r"""(?<![\w /-])[ /-]*+
    (\w[\w /-]++):
    (?: \s*+("(?:[^"\\]|\\.)*+")(?=,|\Z) | [ ]?([^,]*+) )
    (?:,|\Z)""",
    re.VERBOSE,
)
_SIZE = re.compile(r"([0-9]+)x([0-9]+)")
_VERSION = re.compile(r"v?([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:-([0-9]{1,6}))?")


def infotext(prompt: str, negative_prompt: str, pairs: Mapping[str, object]) -> str:
    """The text of one picture."""
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{line(pairs)}".strip()


def line(pairs: Mapping[str, object]) -> str:
    """The pairs of one. Those whose value is None are left out."""
    return ", ".join(
        key if key == str(value) else f"{key}: {_quoted(str(value))}"
        for key, value in pairs.items()
        if value is not None
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def read(text: str, styles: Sequence[Style] = ()) -> dict[str, Any]:
    """What an infotext says, as the original reads it, in time linear in its length.

    Texts by key, with `Prompt` and `Negative prompt`; a size is two keys, `Size-1` and `Size-2`. Missing keys
    have their defaults, old versions' texts the keys of what those did. If both prompts hold texts of
    `styles`, these are taken out of them and named in `Styles array`.
    """
    lines = text.strip().split("\n")
    pairs = _PAIR.findall(lines[-1])
    if len(pairs) >= FEWEST_PAIRS:
        lines.pop()
    else:
        pairs = []
    values = _values(pairs)
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    values |= {"Prompt": "\n".join(lines[:start]), "Negative prompt": negative}
    _modernise(values)
    return {**DEFAULTS, **_more_defaults(values), **_done_by_its_version(values), **_unstyled(values, styles)}


def older(values: Mapping[str, Any], *than: int) -> bool:
    """Whether what was read was written by an older version, as far as it says so."""
    found = _VERSION.match(values.get("Version", ""))
    return found is not None and tuple(int(part or 0) for part in found.groups()) < than


def _values(pairs: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, quoted, raw in pairs:
        value = _unquoted(quoted) if quoted else raw
        if size := _SIZE.fullmatch(value):
            values |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        elif value:
            values[key] = value
    return values


def _unquoted(quoted: str) -> str:
    """The text of a JSON string; what is none, or no Unicode, stays as it is."""
    with suppress(ValueError):
        text = str(json.loads(quoted))
        text.encode()
        return text
    return quoted


def _modernise(values: dict[str, Any]) -> None:
    """Old ways to say what has keys of its own now."""
    name, strength = values.pop("Hypernet", None), values.pop("Hypernet strength", "1.0")
    if name:
        values["Prompt"] += f"<hypernet:{name}:{strength}>"
    first = [values.get(f"First pass size-{i}", "").strip("0") for i in (1, 2)]
    if all([*first, values.get("Size-1"), values.get("Size-2")]):
        for i in (1, 2):
            values[f"Hires resize-{i}"] = values[f"Size-{i}"]
            values[f"Size-{i}"] = values.pop(f"First pass size-{i}")


def _more_defaults(values: Mapping[str, Any]) -> dict[str, object]:
    """Of keys that only some texts miss."""
    defaults: dict[str, object] = {}
    if any(bracket in values[key] for key in ("Prompt", "Negative prompt") for bracket in "(["):
        defaults["Emphasis"] = "Original"
    if values.get("FP8 weight", "Disable") != "Disable":
        defaults["Cache FP16 weight for LoRA"] = False
    return defaults


def _done_by_its_version(values: Mapping[str, Any]) -> dict[str, object]:
    done = {
        "Old prompt editing timelines": older(values, 1, 6) and "[" in values["Prompt"],
        "Pad conds v0": older(values, 1, 6) and values.get("Sampler") in ("DDIM", "PLMS"),
        "Downcast alphas_cumprod": older(values, 1, 7, 0, 225),
        "Refiner switch by sampling steps": older(values, 1, 8) and "Refiner" in values,
    }
    return {key: True for key, is_so in done.items() if is_so}


def _unstyled(values: Mapping[str, Any], styles: Sequence[Style]) -> dict[str, Any]:
    texts = {field: values[key] for field, key in PROMPTS.items() if key in values}
    left, names = prompts.without_styles(texts, styles)
    found = {"Styles array": names} if names else {}
    return {**values, **{PROMPTS[field]: text for field, text in left.items()}, **found}
