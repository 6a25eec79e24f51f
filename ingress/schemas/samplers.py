"""The wire's names of samplers and noise schedules, and what they mean in each AUTOMATIC1111 version.

A name is a sampler, or a sampler and a schedule (`DPM++ 2M Karras`). What a bare name means changed in 1.9:
before, every sampler walked the uniform schedule; since, some have one of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from engine.protocol import SAMPLERS
from ingress.errors import NotFound, SamplerNotFound, unknown_name
from ingress.settings import CompatVersion


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request's sampler and schedule fields come to."""

    sampler: str
    """One of `engine.protocol.SAMPLERS`."""
    schedule: str
    """One of `engine.protocol.SCHEDULES`."""
    name: str
    """The sampler's name in answers and infotexts."""
    schedule_label: str | None
    """The infotext's `Schedule type`; None in versions that do not write it."""


LABELS: Mapping[str, str] = MappingProxyType(
    {"uniform": "Uniform", "karras": "Karras", "exponential": "Exponential"}
)
"""Canonical schedule -> label on the wire."""

_ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Euler": ("k_euler",),
        "Euler a": ("k_euler_a", "k_euler_ancestral"),
        "Heun": ("k_heun",),
        "DPM++ 2M": ("k_dpmpp_2m",),
        "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
        "DDIM": ("ddim",),
    }
)

_FLAGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Euler a": {"uses_ensd": "True"},
        "Heun": {"second_order": "True"},
        "DPM++ 2M SDE": {"brownian_noise": "True"},
    }
)

_OWN_SCHEDULE: Mapping[CompatVersion, Mapping[str, str]] = MappingProxyType(
    {"v1.7.0": {}, "v1.10.1": {"DPM++ 2M": "karras", "DPM++ 2M SDE": "exponential"}}
)
"""What a bare name means where it is not the uniform schedule."""

_LISTED: Mapping[CompatVersion, tuple[tuple[str, str | None], ...]] = MappingProxyType(
    {
        "v1.7.0": (
            ("DPM++ 2M", "karras"),
            ("DPM++ 2M SDE", "exponential"),
            ("DPM++ 2M SDE", "karras"),
            ("Euler a", None),
            ("Euler", None),
            ("Heun", None),
            ("DPM++ 2M", None),
            ("DPM++ 2M SDE", None),
            ("DDIM", None),
        ),
        "v1.10.1": (
            ("DPM++ 2M", None),
            ("DPM++ 2M SDE", None),
            ("Euler a", None),
            ("Euler", None),
            ("Heun", None),
            ("DDIM", None),
        ),
    }
)
"""GET /samplers, in upstream's order: sampler and the schedule that its name says."""

_ALIAS_SUFFIX: Mapping[str, str] = MappingProxyType({"karras": "_ka", "exponential": "_exp"})

_UPSTREAM_SAMPLERS = (
    "LMS", "DPM2 a", "DPM2", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE", "DPM fast",
    "DPM adaptive", "Restart", "PLMS", "UniPC", "LCM", "DDIM CFG++",
)  # fmt: skip

_UPSTREAM_SCHEDULES = (
    "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta",
)  # fmt: skip


def _normal(name: str) -> str:
    return " ".join(name[:200].casefold().replace("_", " ").replace("-", " ").split())


_SAMPLER_OF: Mapping[str, str] = MappingProxyType(
    {_normal(name): sampler for sampler in SAMPLERS for name in (sampler, *_ALIASES[sampler])}
)

_SCHEDULE_OF: Mapping[str, str | None] = MappingProxyType(
    {
        "": None,
        "automatic": None,
        "uniform": "uniform",
        "karras": "karras",
        "ka": "karras",
        "exponential": "exponential",
        "exp": "exponential",
    }
)
"""Normal form -> canonical schedule, None for the sampler's own."""


def resolve(name: str, scheduler: str | None, version: CompatVersion, field: str) -> Sampling:
    """What a sampler name and a scheduler field, in any version's spelling, mean in `version`.

    A schedule within the name wins over the scheduler field. `field` is the one that `name` came from, for
    the messages of `SamplerNotFound` and, about the scheduler, `NotFound`.
    """
    sampler, from_name = _split(name, version, field)
    chosen = from_name or _schedule(scheduler or "")
    if sampler == "DDIM":  # walks its own timesteps
        chosen = None
    named = chosen or _OWN_SCHEDULE[version].get(sampler)
    schedule = named or "uniform"
    if version == "v1.7.0":
        return Sampling(sampler, schedule, _combined(sampler, schedule), None)
    return Sampling(sampler, schedule, sampler, LABELS[named] if named else "Automatic")


def _split(name: str, version: CompatVersion, field: str) -> tuple[str, str | None]:
    text = _normal(name)
    if text in _SAMPLER_OF:
        return _SAMPLER_OF[text], None
    head, _, tail = text.rpartition(" ")
    if head in _SAMPLER_OF and tail in _SCHEDULE_OF:
        return _SAMPLER_OF[head], _SCHEDULE_OF[tail]
    known = [row["name"] for row in list_samplers(version)]
    planned = any(f"{text} ".startswith(f"{_normal(other)} ") for other in _UPSTREAM_SAMPLERS)
    raise SamplerNotFound(unknown_name(field, name, known, planned))


def _schedule(scheduler: str) -> str | None:
    text = _normal(scheduler)
    if text in _SCHEDULE_OF:
        return _SCHEDULE_OF[text]
    allowed = ["Automatic", *LABELS.values()]
    planned = text in map(_normal, _UPSTREAM_SCHEDULES)
    raise NotFound(unknown_name("scheduler", scheduler, allowed, planned))


def _combined(sampler: str, schedule: str | None) -> str:
    return sampler if schedule in (None, "uniform") else f"{sampler} {LABELS[schedule]}"


def list_samplers(version: CompatVersion) -> list[dict[str, Any]]:
    """GET /samplers: those of the version's list that the engine has."""
    return [_listed(sampler, schedule, version) for sampler, schedule in _LISTED[version]]


def _listed(sampler: str, schedule: str | None, version: CompatVersion) -> dict[str, Any]:
    own = schedule or _OWN_SCHEDULE[version].get(sampler)
    suffix = _ALIAS_SUFFIX[schedule] if schedule else ""
    return {
        "name": _combined(sampler, schedule),
        "aliases": [alias + suffix for alias in _ALIASES[sampler]],
        "options": {**({"scheduler": own} if own else {}), **_FLAGS.get(sampler, {})},
    }


def list_schedulers() -> list[dict[str, Any]]:
    """GET /schedulers, in upstream's order."""
    automatic = ("automatic", "Automatic")
    return [
        {
            "name": name,
            "label": label,
            "aliases": None,
            "default_rho": 7.0 if name == "karras" else -1.0,
            "need_inner_model": name == "uniform",
        }
        for name, label in (automatic, *LABELS.items())
    ]
