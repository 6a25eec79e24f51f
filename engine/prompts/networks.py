"""Extra networks: `<lora:name:te:unet>` asks for weights, not for words."""

import re
from dataclasses import dataclass

from engine.prompts.numbers import NUMBER, bounded

_TAG = re.compile(r"<(\w+):([^>]*)>")
_NUMBER = re.compile(NUMBER)

KINDS = {"lora": "lora", "lyco": "lora", "hypernet": "hypernet"}
"""Tags that ask for a network. Any other is removed all the same, and asks for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`kind` is lora or hypernet, `te` and `unet` the strengths of its parts in the two models.

    `rank` is what `dyn` asks for: only that many of a LoRA's ranks; None is all.
    """

    kind: str
    name: str
    te: float
    unet: float
    rank: int | None = None


def take_networks(text: str, field: str) -> tuple[str, tuple[Network, ...]]:
    """The text without its tags, and what they ask for, in order.

    A tag whose numbers are none stays text. Raises InvalidJob, naming `field`, for strengths out of bounds.
    """
    networks: list[Network] = []

    def taken(tag: re.Match[str]) -> str:
        if tag[1] not in KINDS:
            return ""
        network = _network(KINDS[tag[1]], tag[2], field)
        if network is None:
            return tag[0]
        networks.append(network)
        return ""

    end = text.rfind(">") + 1  # beyond it no tag ends, and looking for one would be quadratic
    return _TAG.sub(taken, text[:end]) + text[end:], tuple(networks)


def _network(kind: str, arguments: str, field: str) -> Network | None:
    """`name`, `name:te`, `name:te:unet`, `name:te:unet:dyn`, the numbers also as `te=`, `unet=`, `dyn=`.

    A strength not given is the text encoder's, and that one 1.
    """
    name, *rest = arguments.split(":")
    positional = [argument for argument in rest if "=" not in argument]
    named = dict(argument.split("=", 1) for argument in rest if "=" in argument)
    given = dict(zip(("te", "unet", "dyn"), positional, strict=False)) | named
    numbers = {key: number.strip() for key, number in given.items() if number.strip()}
    if not all(_NUMBER.fullmatch(number) for number in numbers.values()):
        return None
    te = bounded(numbers.get("te", 1.0), field)
    unet = bounded(numbers.get("unet", te), field)
    rank = int(bounded(numbers["dyn"], field)) if "dyn" in numbers else None
    return Network(kind=kind, name=name, te=te, unet=unet, rank=rank)
