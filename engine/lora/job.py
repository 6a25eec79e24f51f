"""A prompt's `<lora:…>` tags -> the LoRAs of its pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from engine.lora.layers import Weighted
from engine.lora.store import LoraStore
from engine.nearest import nearest
from engine.prompts.networks import Network, take_networks
from engine.protocol import InvalidJob, Job, LoraError

MAX_LORAS = 16
"""In one prompt: each is loaded, and adds its ranks to every row of the call."""


@dataclass(frozen=True, slots=True)
class JobLoras:
    """What one pass adds to each of the two models, in the prompt's order.

    `hashes` are those of what was found, named as in the prompt; `warnings` say what was not. Whoever holds
    this keeps the LoRAs loaded.
    """

    unet: tuple[Weighted, ...] = ()
    text_encoder: tuple[Weighted, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()


NO_LORAS = JobLoras()


def names_loras(job: Job) -> bool:
    """Whether there may be anything to look up for its first pass."""
    return "<" in job.prompt


def job_loras(job: Job, store: LoraStore, field: str = "prompt") -> JobLoras:
    """Look up, and load if need be, what a job's prompt names. Slow then: seconds for a large file.

    Raises LoraError for a file that cannot be used and, where the store is strict, for an unknown name;
    InvalidJob, naming `field`, for tags that this version does not apply.
    """
    networks = _networks(job, field)
    names = list(dict.fromkeys(network.name for network in networks))
    if len(names) > MAX_LORAS:
        raise InvalidJob(f"{field}: {len(names)} LoRAs; allowed are up to {MAX_LORAS}")
    found = {name: lora for name in names if (lora := store.get(name))}
    warnings = tuple(
        f"prompt: there is no LoRA {name[:60]!r}.{nearest(name, store.names())}"
        for name in names
        if name not in found
    )
    if warnings and store.strict:
        raise LoraError(warnings[0])
    used = [network for network in networks if network.name in found]
    return JobLoras(
        unet=tuple((found[network.name], network.unet) for network in used),
        text_encoder=tuple((found[network.name], network.te) for network in used),
        hashes={name: lora.hash for name, lora in found.items()},
        warnings=warnings,
    )


def _networks(job: Job, field: str) -> Sequence[Network]:
    networks = take_networks(job.prompt, field)[1] if job.extra_networks else ()
    for network in networks:
        _check(network, field)
    return networks


def _check(network: Network, field: str) -> None:
    if network.kind != "lora":
        raise InvalidJob(f"{field}: {network.kind} networks are not available in this version")
    if network.rank is not None:
        raise InvalidJob(f"{field}: dyn, a LoRA's reduced rank, is not available in this version")
