"""A prompt's `<lora:…>` tags -> the LoRAs of its job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from engine.lora.file import Lora
from engine.lora.layers import Weighted
from engine.lora.store import LoraStore
from engine.prompts.networks import Network, take_networks
from engine.protocol import InvalidJob, Job, LoraError

MAX_LORAS = 16
"""In one prompt: each is loaded, and adds its ranks to every row of the call."""


@dataclass(frozen=True, slots=True)
class JobLoras:
    """What one job adds to each of the two models, in the prompt's order; `second`: in its second pass.

    `hashes` is "name: hash, …" of what was found, named as in the prompt; `warnings` say what was not.
    Whoever holds this keeps the LoRAs loaded.
    """

    unet: tuple[Weighted, ...] = ()
    text_encoder: tuple[Weighted, ...] = ()
    hashes: str = ""
    warnings: tuple[str, ...] = ()
    second: "JobLoras | None" = None


def names_loras(job: Job) -> bool:
    """Whether there may be anything to look up for it."""
    return "<" in job.prompt or (job.hires is not None and "<" in job.hires.prompt)


def job_loras(job: Job, store: LoraStore) -> JobLoras:
    """Look up, and load if need be, what a job's prompts name. Slow then: seconds for a large file.

    Raises LoraError for a file that cannot be used and, where the store is strict, for an unknown name;
    InvalidJob for tags that this version does not apply.
    """
    first = _networks(job, "prompt")
    second = _networks(job.second_pass(), "hr_prompt") if job.hires else None
    names = list(dict.fromkeys(network.name for network in (*first, *(second or ()))))
    if len(names) > MAX_LORAS:
        raise InvalidJob(f"prompt: {len(names)} LoRAs; allowed are up to {MAX_LORAS}")
    found = {name: lora for name in names if (lora := store.get(name))}
    warnings = tuple(f"prompt: there is no LoRA {name[:60]!r}" for name in names if name not in found)
    if warnings and store.strict:
        raise LoraError(warnings[0])
    return replace(
        _weighted(first, found),
        hashes=", ".join(f"{name.replace(',', '')}: {lora.hash}" for name, lora in found.items()),
        warnings=warnings,
        second=None if second is None else _weighted(second, found),
    )


def _networks(job: Job, field: str) -> Sequence[Network]:
    networks = take_networks(job.prompt, field)[1] if job.extra_networks else ()
    for network in networks:
        _check(network, field)
    return networks


def _weighted(networks: Sequence[Network], found: Mapping[str, Lora]) -> JobLoras:
    used = [network for network in networks if network.name in found]
    return JobLoras(
        unet=tuple((found[network.name], network.unet) for network in used),
        text_encoder=tuple((found[network.name], network.te) for network in used),
    )


def infotext(text: str, loras: JobLoras) -> str:
    """A job's infotext with the hashes of its LoRAs, which only a replica knows: before the version."""
    if not loras.hashes:
        return text
    start, last = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    pairs, version, number = last.rpartition(", Version: ")
    addition = f"Lora hashes: {json.dumps(loras.hashes, ensure_ascii=False)}"
    return f"{start}{pairs}, {addition}{version}{number}" if version else f"{text}, {addition}"


def _check(network: Network, field: str) -> None:
    if network.kind != "lora":
        raise InvalidJob(f"{field}: {network.kind} networks are not available in this version")
    if network.rank is not None:
        raise InvalidJob(f"{field}: dyn, a LoRA's reduced rank, is not available in this version")
