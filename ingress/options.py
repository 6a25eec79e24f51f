"""A1111's options: which there are, what a caller may set them to, and what they are for one caller.

What a caller sets is an overlay of its own key: a mapping of options to values, in which is only what is not
as it would be anyway.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError, create_model

from engine.protocol import Checkpoint, Unavailable
from ingress import checkpoints
from ingress.errors import (
    LISTED_NAMES,
    CheckpointNotFound,
    InvalidRequest,
    NotFound,
    listed,
    validation_message,
)
from ingress.limits import check_options
from ingress.schemas.sdapi import Number, OverrideSettings, Text
from ingress.settings import CompatVersion, Settings

MAX_CHARS = 2**16
"""Of an overlay as JSON. One that sets every option has a quarter of it."""

DEFAULTS: Mapping[CompatVersion, Mapping[str, Any]] = MappingProxyType(
    json.loads((Path(__file__).parent / "data" / "options.json").read_text(encoding="utf-8"))
)
"""Every option of a version, in the order and with the types of the wire."""

FIXED = frozenset({"api_enable_requests", "api_forbid_local_requests", "api_useragent", "sd_checkpoint_hash"})
"""Options that nobody sets over the wire, nor those that explain: passed over, as clients send all back."""

CHECKPOINT = "sd_model_checkpoint"

_ALL: Mapping[str, Any] = MappingProxyType({**DEFAULTS["v1.7.0"], **DEFAULTS["v1.10.1"]})


def _type(default: object) -> Any:
    """What an option may be, by its default."""
    if isinstance(default, bool | list):
        return bool if isinstance(default, bool) else list[Any]
    if isinstance(default, int | float):
        return Number if isinstance(default, float) else int | float
    return Text


_FIELDS: dict[str, Any] = {
    name: (_type(default) | None, None)
    for name, default in _ALL.items()
    if name not in OverrideSettings.model_fields
}
Options: type[OverrideSettings] = create_model("Options", __base__=OverrideSettings, **_FIELDS)
"""All options of all versions."""


def shown(overlay: Mapping[str, Any], settings: Settings, available: Sequence[Checkpoint]) -> dict[str, Any]:
    """Every option as it is for a caller with that overlay."""
    values = {**DEFAULTS[settings.compat_version], **_own_defaults(settings), **overlay}
    name = overlay.get(CHECKPOINT, available[0].name if available else None)
    chosen = next((each for each in available if each.name == name), None)
    values[CHECKPOINT] = checkpoints.title(chosen) if chosen else name
    values["sd_checkpoint_hash"] = chosen.sha256 if chosen else ""
    floats = {name for name, value in _ALL.items() if isinstance(value, float)}
    return {name: float(value) if name in floats else value for name, value in values.items()}


def changed(
    overlay: Mapping[str, Any],
    given: Mapping[str, Any],
    settings: Settings,
    available: Sequence[Checkpoint],
    field: str = "",
) -> dict[str, Any]:
    """The overlay with what is given. Null, and what an option is anyway, sets it no more. Unknown options
    are left out.

    Raises `InvalidRequest`, whose message begins with the option in `field`, and `CheckpointNotFound`.
    """
    try:
        values = Options.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest(validation_message(error.errors(), field)) from None
    check_options(values, field)
    changes = {name: getattr(values, name) for name in values.model_fields_set}
    if CHECKPOINT in changes:
        changes[CHECKPOINT] = _checkpoint(changes[CHECKPOINT], available, field)
    if "enable_emphasis" in changes:  # the older name: what is said last counts
        changes.setdefault("emphasis", None)
    cleared = dict.fromkeys(name for name, value in given.items() if value is None)
    after = _set({**overlay, **cleared, **changes}, settings, available)
    if len(json.dumps(after)) > MAX_CHARS:
        raise InvalidRequest(f"{field or 'options'}: more than {MAX_CHARS} characters are not kept.")
    return after


def counting(overlay: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What counts for a request with these overrides: they do, and the overlay where they leave it open."""
    given = {name: value for name, value in overrides.items() if value is not None}
    if given.get(CHECKPOINT) == "":
        del given[CHECKPOINT]
    left = {
        name: value for name, value in overlay.items() if name != "emphasis" or "enable_emphasis" not in given
    }
    return {**left, **given}


def unknown(given: Iterable[str]) -> list[str]:
    """The names that are no option of any version."""
    return [name for name in given if name not in Options.model_fields]


def unknown_options(field: str, names: Sequence[str]) -> tuple[str, ...]:
    """The warning of options that were left out, with the nearest that there are; none without names."""
    near = [match for name in names[:LISTED_NAMES] for match in _nearest(name)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return (f"{field}: {listed(names)} not known{hint}, and left out",) if names else ()


def refuse_unknown(names: Sequence[str]) -> None:
    """Raise `InvalidRequest` for the first of these names, none of which is an option."""
    near = "".join(f" Nearest: {name}." for name in _nearest(names[0]))
    raise InvalidRequest(
        f"options: {listed(names[:1])} is not known.{near} Allowed: the keys of GET /sdapi/v1/options."
    )


def _nearest(name: str) -> list[str]:
    return get_close_matches(name[:80], _ALL, n=1, cutoff=0.8)


def _own_defaults(settings: Settings) -> dict[str, Any]:
    """What is not here as in the original, if nobody sets it."""
    return {"CLIP_stop_at_last_layers": settings.clip_skip, "randn_source": "CPU"}


def _set(values: Mapping[str, Any], settings: Settings, available: Sequence[Checkpoint]) -> dict[str, Any]:
    """Those that may be set, and are not what they are anyway."""
    anyway = {
        **_ALL,
        "enable_prompt_comments": settings.compat_version != "v1.7.0",
        **_own_defaults(settings),
        CHECKPOINT: available[0].name if available else None,
    }
    return {
        name: value
        for name, value in values.items()
        if name in _ALL and not _is_fixed(name) and value not in (None, anyway[name])
    }


def _is_fixed(name: str) -> bool:
    return name in FIXED or name.endswith("_explanation")


def _checkpoint(wanted: str, available: Sequence[Checkpoint], field: str) -> str | None:
    """Its name; None for the default one."""
    if not wanted:
        return None
    if not available:
        raise Unavailable("No checkpoint is configured")
    name = f"{field}.{CHECKPOINT}" if field else CHECKPOINT
    try:
        found = checkpoints.find(wanted, available, name)
    except NotFound as error:
        raise CheckpointNotFound(error.message, wanted) from None
    return checkpoints.with_replicas(found, name).name
