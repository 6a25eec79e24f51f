"""A1111's scripts: which there are, and which requests ask for one that there is not.

Clients mention scripts that they do not use, and some send the arguments of an earlier request once more:
what would do nothing is accepted, whatever its name. What would change the picture is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from ingress.errors import InvalidRequest, ScriptRefused, nearest, shown
from ingress.schemas.scripts import ADetailerUnit, AnimateDiffUnit, ControlNetUnit, Unit
from ingress.schemas.sdapi import GenerationRequest
from ingress.settings import CompatVersion

Tab = Literal["txt2img", "img2img"]
TABS: tuple[Tab, ...] = ("txt2img", "img2img")

FIELD = "alwayson_scripts"


@dataclass(frozen=True, slots=True)
class Present:
    """An always-on script of A1111's whose args do nothing there either: `fields` of the request do it."""

    fields: str
    listed_since: CompatVersion | None = None
    """None: not listed."""


PRESENT: Mapping[str, Present] = MappingProxyType(
    {
        "refiner": Present("refiner_checkpoint, refiner_switch_at", "v1.7.0"),
        "sampler": Present("sampler_name, scheduler, steps", "v1.10.1"),
        "seed": Present("seed, subseed, subseed_strength, seed_resize_from_h, seed_resize_from_w", "v1.7.0"),
        "comments": Present("override_settings.enable_prompt_comments"),
        "extra options": Present("override_settings"),
        "hypertile": Present("none"),
    }
)

_EACH = "send a request for each of the pictures, at once: they share the model's calls"

SELECTABLE: Mapping[str, str] = MappingProxyType(
    {
        "prompt matrix": _EACH,
        "prompts from file or textbox": _EACH,
        "x/y/z plot": _EACH,
        "custom code": "",
        "img2img alternative test": "",
        "loopback": "send each picture to img2img",
        "outpainting mk2": "send a larger picture and a mask to img2img",
        "poor man's outpainting": "send a larger picture and a mask to img2img",
        "sd upscale": "enable_hr, or a larger size in img2img",
    }
)
"""A1111's own, none of which is here, and what does the same."""


def _first(args: Sequence[Any]) -> bool:
    return bool(args and args[0])


def _second(args: Sequence[Any]) -> bool:
    """Behind a picture."""
    return len(args) > 1 and bool(args[1])


def _units(model: type[Unit], args: Sequence[Any]) -> bool:
    return any(_unit_asks(model, unit) for unit in args)


def _unit_asks(model: type[Unit], unit: Any) -> bool:
    """What cannot be understood asks for something."""
    try:
        return bool(unit) and model.model_validate(unit).asks
    except ValidationError:
        return True


def _adetailer(args: Sequence[Any]) -> bool:
    """Two switches may stand before the units, of which the first is for all of them."""
    units = [arg for arg in args if not isinstance(arg, bool)]
    return _units(ADetailerUnit, units) and args[0] is not False


def _soft_inpainting(args: Sequence[Any]) -> bool:
    """Some clients send one object of labels."""
    first = args[0] if args else False
    return bool(first.get("Soft inpainting", first.get("enabled")) if isinstance(first, dict) else first)


ABSENT: Mapping[str, Callable[[Sequence[Any]], bool]] = MappingProxyType(
    {
        "adetailer": _adetailer,
        "animatediff": partial(_units, AnimateDiffUnit),
        "controlnet": partial(_units, ControlNetUnit),
        "reactor": _second,
        "roop": _second,
        "self attention guidance": _first,
        "soft inpainting": _soft_inpainting,
    }
)
"""Always-on scripts that are not here, and whether arguments ask them for anything."""


def listed(tab: Tab, version: CompatVersion) -> list[str]:
    """The scripts of GET /scripts: the same for both."""
    versions = ("v1.7.0", version)
    return [name for name, script in PRESENT.items() if script.listed_since in versions]


def check_scripts(request: GenerationRequest) -> tuple[str, ...]:
    """Warnings of arguments that are left out.

    Raises `InvalidRequest` for a script that is not here, `ScriptRefused` for what A1111 refuses too.
    """
    if request.script_name:
        _refuse_selected(request.script_name)
    warnings = (_warning(name, _args(name, entry)) for name, entry in request.alwayson_scripts.items())
    return tuple(filter(None, warnings))


def _refuse_selected(name: str) -> None:
    known = name.casefold()
    if known not in SELECTABLE:
        raise _not_found("script_name", name, list(SELECTABLE), "No selectable script is here")
    instead = f" Instead: {SELECTABLE[known]}." if SELECTABLE[known] else ""
    raise InvalidRequest(
        f"script_name: {shown(name)} asks for a feature that this version does not have.{instead}"
    )


def _args(name: str, entry: Any) -> list[Any]:
    given = entry.get("args") if isinstance(entry, dict) else entry
    if not isinstance(given or [], list):
        raise InvalidRequest(f"{FIELD}.{name[:80]}: {shown(given)} is not allowed. Allowed: args in a list.")
    return given or []


def _warning(name: str, args: Sequence[Any]) -> str:
    """Empty where nothing is left out."""
    known = name.casefold()
    if known in PRESENT:
        said = f"{FIELD}.{known}: its args are left out; request fields for it: {PRESENT[known].fields}"
        return said if any(args) else ""
    if known in SELECTABLE:
        raise ScriptRefused(
            f"{FIELD}: {shown(name)} is a selectable script, for script_name.",
            "Cannot have a selectable script in the always on scripts params",
        )
    asks = ABSENT.get(known, any)(args)
    if asks and known in ABSENT:
        raise InvalidRequest(
            f"{FIELD}: {shown(name)} asks for a feature that this version does not have. Allowed: args that "
            "leave it off."
        )
    if asks:
        raise _not_found(FIELD, name, [*PRESENT, *ABSENT], f"Allowed: {', '.join(PRESENT)}")
    return ""


def _not_found(field: str, name: str, known: Sequence[str], there: str) -> ScriptRefused:
    message = f"{field}: {shown(name)} is not known.{nearest(name, known)} {there}."
    return ScriptRefused(message, f"Script '{name[:80]}' not found")
