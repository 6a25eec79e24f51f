"""The wire's names of samplers and noise schedules, and what they mean in each AUTOMATIC1111 version.

A name is a sampler, or a sampler and a schedule (`DPM++ 2M Karras`). What a bare name means changed in 1.9:
before, nearly every sampler walked the uniform schedule; since, many have one of their own.
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


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A row of GET /schedulers."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()
    default_rho: float = -1.0
    need_inner_model: bool = False


_AUTOMATIC = Scheduler("automatic", "Automatic")
_SCHEDULERS = (
    Scheduler("uniform", "Uniform", need_inner_model=True),
    Scheduler("karras", "Karras", default_rho=7.0),
    Scheduler("exponential", "Exponential"),
    Scheduler("polyexponential", "Polyexponential", default_rho=1.0),
    Scheduler("sgm_uniform", "SGM Uniform", aliases=("SGMUniform",), need_inner_model=True),
    Scheduler("kl_optimal", "KL Optimal"),
    Scheduler("align_your_steps", "Align Your Steps"),
    Scheduler("simple", "Simple", need_inner_model=True),
    Scheduler("normal", "Normal", need_inner_model=True),
    Scheduler("ddim", "DDIM", need_inner_model=True),
    Scheduler("beta", "Beta", need_inner_model=True),
)

LABELS: Mapping[str, str] = MappingProxyType({each.name: each.label for each in _SCHEDULERS})
"""Canonical schedule -> label on the wire."""

_ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "DPM++ 2M": ("k_dpmpp_2m",),
        "DPM++ SDE": ("k_dpmpp_sde",),
        "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
        "DPM++ 2M SDE Heun": ("k_dpmpp_2m_sde_heun",),
        "DPM++ 2S a": ("k_dpmpp_2s_a",),
        "DPM++ 3M SDE": ("k_dpmpp_3m_sde",),
        "Euler a": ("k_euler_a", "k_euler_ancestral"),
        "Euler": ("k_euler",),
        "LMS": ("k_lms",),
        "Heun": ("k_heun",),
        "DPM2": ("k_dpm_2",),
        "DPM2 a": ("k_dpm_2_a",),
        "DPM fast": ("k_dpm_fast",),
        "DPM adaptive": ("k_dpm_ad",),
        "Restart": ("restart",),
        "DDIM": ("ddim",),
        "DDIM CFG++": ("ddim_cfgpp",),
        "PLMS": ("plms",),
        "UniPC": ("unipc",),
        "LCM": ("k_lcm",),
    }
)

_ENSD = {"uses_ensd": "True"}
_TWICE = {"second_order": "True"}
_BROWNIAN = {"brownian_noise": "True"}
_DISCARD = {"discard_next_to_last_sigma": "True"}

_FLAGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "DPM++ SDE": _TWICE | _BROWNIAN,
        "DPM++ 2M SDE": _BROWNIAN,
        "DPM++ 2M SDE Heun": _BROWNIAN | {"solver_type": "heun"},
        "DPM++ 2S a": _ENSD | _TWICE,
        "DPM++ 3M SDE": _DISCARD | _BROWNIAN,
        "Euler a": _ENSD,
        "Heun": _TWICE,
        "DPM2": _DISCARD | _TWICE,
        "DPM2 a": _DISCARD | _ENSD | _TWICE,
        "DPM fast": _ENSD,
        "DPM adaptive": _ENSD,
        "Restart": _TWICE,
    }
)

_FLAGS_OF_COMBINED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"DPM2 Karras": _DISCARD | _ENSD | _TWICE}
)
"""Where upstream lists a combined name with other flags than the bare one."""

_OWN_LEVELS = frozenset({"DPM fast", "DPM adaptive", "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM"})
"""Samplers that ignore the schedule."""

_OWN_SCHEDULE: Mapping[CompatVersion, Mapping[str, str]] = MappingProxyType(
    {
        "v1.7.0": {"Restart": "karras"},
        "v1.10.1": {
            "DPM++ 2M": "karras",
            "DPM++ SDE": "karras",
            "DPM++ 2M SDE": "exponential",
            "DPM++ 2M SDE Heun": "exponential",
            "DPM++ 2S a": "karras",
            "DPM++ 3M SDE": "exponential",
            "DPM2": "karras",
            "DPM2 a": "karras",
            "Restart": "karras",
        },
    }
)
"""What a bare name means where it is not the uniform schedule."""

_LISTED: Mapping[CompatVersion, tuple[tuple[str, str | None], ...]] = MappingProxyType(
    {
        "v1.7.0": (
            ("DPM++ 2M", "karras"),
            ("DPM++ SDE", "karras"),
            ("DPM++ 2M SDE", "exponential"),
            ("DPM++ 2M SDE", "karras"),
            ("Euler a", None),
            ("Euler", None),
            ("LMS", None),
            ("Heun", None),
            ("DPM2", None),
            ("DPM2 a", None),
            ("DPM++ 2S a", None),
            ("DPM++ 2M", None),
            ("DPM++ SDE", None),
            ("DPM++ 2M SDE", None),
            ("DPM++ 2M SDE Heun", None),
            ("DPM++ 2M SDE Heun", "karras"),
            ("DPM++ 2M SDE Heun", "exponential"),
            ("DPM++ 3M SDE", None),
            ("DPM++ 3M SDE", "karras"),
            ("DPM++ 3M SDE", "exponential"),
            ("DPM fast", None),
            ("DPM adaptive", None),
            ("LMS", "karras"),
            ("DPM2", "karras"),
            ("DPM2 a", "karras"),
            ("DPM++ 2S a", "karras"),
            ("Restart", None),
            ("DDIM", None),
            ("PLMS", None),
            ("UniPC", None),
        ),
        "v1.10.1": tuple((sampler, None) for sampler in SAMPLERS),
    }
)
"""GET /samplers, in upstream's order: sampler and the schedule that its name says."""

_ALIAS_SUFFIX: Mapping[str, str] = MappingProxyType({"karras": "_ka", "exponential": "_exp"})


def _normal(name: str) -> str:
    return " ".join(name[:200].casefold().replace("_", " ").replace("-", " ").split())


_SAMPLER_OF: Mapping[str, str] = MappingProxyType(
    {_normal(name): sampler for sampler in SAMPLERS for name in (sampler, *_ALIASES[sampler])}
)

_SCHEDULE_OF: Mapping[str, str | None] = MappingProxyType(
    {
        _AUTOMATIC.name: None,
        "ka": "karras",
        "exp": "exponential",
        **{
            _normal(name): each.name
            for each in _SCHEDULERS
            for name in (each.label, each.name, *each.aliases)
        },
    }
)
"""Normal form -> canonical schedule, None for the sampler's own."""


def resolve(name: str, scheduler: str | None, version: CompatVersion, field: str) -> Sampling:
    """What a sampler name and a scheduler field, in any version's spelling, mean in `version`.

    A schedule within the name wins over the scheduler field. `field` is the one that `name` came from, for
    the messages of `SamplerNotFound` and, about the scheduler, `NotFound`.
    """
    sampler, from_name = _split(name, version, field)
    chosen = from_name or (_schedule(scheduler) if scheduler else None)
    if sampler in _OWN_LEVELS:
        chosen = None
    own = _OWN_SCHEDULE[version].get(sampler)
    named = chosen or own
    schedule = named or "uniform"
    if version == "v1.7.0":
        bare = schedule == (own or "uniform")
        return Sampling(sampler, schedule, sampler if bare else _combined(sampler, schedule), None)
    return Sampling(sampler, schedule, sampler, LABELS[named] if named else _AUTOMATIC.label)


def uses_ensd(sampler: str) -> bool:
    """Whether the infotext says with which seed delta this sampler's noise was drawn."""
    return "uses_ensd" in _FLAGS.get(sampler, {})


def canonical(name: str) -> str | None:
    """The sampler that a name without a schedule means, if any."""
    return _SAMPLER_OF.get(_normal(name))


def _split(name: str, version: CompatVersion, field: str) -> tuple[str, str | None]:
    text = _normal(name)
    if text in _SAMPLER_OF:
        return _SAMPLER_OF[text], None
    for suffix, schedule in _SCHEDULE_OF.items():
        head = text.removesuffix(f" {suffix}")
        if head != text and head in _SAMPLER_OF:
            return _SAMPLER_OF[head], schedule
    raise SamplerNotFound(unknown_name(field, name, [row["name"] for row in list_samplers(version)]))


def _schedule(scheduler: str) -> str | None:
    text = _normal(scheduler)
    if text in _SCHEDULE_OF:
        return _SCHEDULE_OF[text]
    raise NotFound(unknown_name("scheduler", scheduler, [_AUTOMATIC.label, *LABELS.values()]))


def _combined(sampler: str, schedule: str) -> str:
    return f"{sampler} {LABELS[schedule]}"


def list_samplers(version: CompatVersion) -> list[dict[str, Any]]:
    """GET /samplers: upstream's list of that version."""
    return [_listed(sampler, schedule, version) for sampler, schedule in _LISTED[version]]


def _listed(sampler: str, schedule: str | None, version: CompatVersion) -> dict[str, Any]:
    own = schedule or _OWN_SCHEDULE[version].get(sampler)
    name = _combined(sampler, schedule) if schedule else sampler
    flags = _FLAGS_OF_COMBINED.get(name, _FLAGS.get(sampler, {}))
    suffix = _ALIAS_SUFFIX[schedule] if schedule else ""
    return {
        "name": name,
        "aliases": [alias + suffix for alias in _ALIASES[sampler]],
        "options": {**({"scheduler": own} if own else {}), **flags},
    }


def list_schedulers() -> list[dict[str, Any]]:
    """GET /schedulers: upstream's list of v1.10.1."""
    return [
        {
            "name": each.name,
            "label": each.label,
            "aliases": list(each.aliases) or None,
            "default_rho": each.default_rho,
            "need_inner_model": each.need_inner_model,
        }
        for each in (_AUTOMATIC, *_SCHEDULERS)
    ]
