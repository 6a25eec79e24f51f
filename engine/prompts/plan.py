"""A prompt, read whole: what is to be encoded, when and how much each text counts, and which networks.

In this order, which is AUTOMATIC1111's: extra networks are taken out, the text is split at AND, every part
is scheduled, and the emphasis of every text is read. A negative prompt knows neither of the first two.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from engine.prompts.emphasis import Prompt, parse_emphasis
from engine.prompts.networks import Network, take_networks
from engine.prompts.numbers import NUMBER, bounded
from engine.prompts.schedule import Scheduler, Timeline
from engine.protocol import EMPHASIS, MAX_PROMPT_CHARS, InvalidJob

MAX_PARTS = 8
"""Of an AND: each is one more model row of every evaluation."""

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(rf"\s*({NUMBER})\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the texts that AND joins, as (last step, prompt): see `Scheduler.spans`."""

    weight: float
    spans: tuple[tuple[int, Prompt], ...]

    def at(self, evaluation: int) -> Prompt:
        """The prompt of an evaluation, counted from 0: a change at step k holds from the (k + 2)th on."""
        index = bisect_left(self.spans, evaluation, key=lambda span: span[0])
        return self.spans[min(index, len(self.spans) - 1)][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`text` is what is left without the tags of `networks`; a negative prompt is one part of weight 1."""

    text: str
    parts: tuple[Part, ...]
    networks: tuple[Network, ...] = ()

    @property
    def prompts(self) -> list[Prompt]:
        """Every prompt once, in the order of the parts."""
        return list(dict.fromkeys(prompt for part in self.parts for _, prompt in part.spans))


def parse(text: str, timeline: Timeline, *, emphasis: str = "Original", field: str = "prompt") -> Plan:
    """A positive prompt. Linear in `text` and in what its schedules write, both of them bounded.

    Raises InvalidJob, which names `field`, what was found and what is allowed.
    """
    _check(text, emphasis, field)
    text, networks = take_networks(text, field)
    texts = _AND.split(text)
    if len(texts) > MAX_PARTS:
        raise InvalidJob(f"{field}: {len(texts)} parts joined by AND; allowed are up to {MAX_PARTS}")
    parts = [_weighted(part, field) for part in texts]
    return Plan(text=text, parts=_scheduled(parts, timeline, emphasis, field), networks=networks)


def parse_negative(
    text: str, timeline: Timeline, *, emphasis: str = "Original", field: str = "negative_prompt"
) -> Plan:
    """A negative prompt, where tags, AND and a number at the end are text. Raises InvalidJob."""
    _check(text, emphasis, field)
    return Plan(text=text, parts=_scheduled([(text, 1.0)], timeline, emphasis, field))


def _check(text: str, emphasis: str, field: str) -> None:
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidJob(f"{field}: {len(text)} characters; allowed are up to {MAX_PROMPT_CHARS}")
    if emphasis not in EMPHASIS:
        raise InvalidJob(f"emphasis {emphasis!r} is not one of {', '.join(EMPHASIS)}")


def _weighted(part: str, field: str) -> tuple[str, float]:
    """`a cat :1.2` is a text and its weight, also where it is the whole prompt."""
    text, colon, end = part.rpartition(":")
    number = _WEIGHT.fullmatch(end) if colon else None
    return (text.strip(), bounded(number[1], field)) if number else (part.strip(), 1.0)


def _scheduled(
    texts: Sequence[tuple[str, float]], timeline: Timeline, emphasis: str, field: str
) -> tuple[Part, ...]:
    scheduler = Scheduler(timeline, field)
    prompt = cache(partial(parse_emphasis, mode=emphasis, field=field))
    return tuple(
        Part(weight=weight, spans=tuple((last, prompt(text)) for last, text in scheduler.spans(scheduled)))
        for scheduled, weight in texts
    )
