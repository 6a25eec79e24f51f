"""The prompt grammar: emphasis and chunk breaks, in one pass. Standard library only.

The language is AUTOMATIC1111's: `(a)` is 1.1 times as strong, `[a]` 1.1 times weaker, `(a:1.3)` 1.3 times
as strong, brackets nest and multiply, a backslash makes a bracket literal, `BREAK` ends a chunk.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from engine.protocol import InvalidJob

EMPHASIS = 1.1
MAX_DEPTH = 32
MAX_WEIGHT = 1000

_TOKEN = re.compile(
    r"""
    \\[()\[\]\\]                                        # an escaped bracket or backslash
    | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)     # the end of (text:weight)
    | [()\[\]]
    | \bBREAK\b
    | [^\\()\[\]:B]+ | .                                # text
    """,
    re.VERBOSE | re.DOTALL,
)

_CLOSING = {")": ("(", EMPHASIS), "]": ("[", 1 / EMPHASIS)}

_LATER = (
    (re.compile(r"(?<!\\)\[[^\[\]|]*\|[^\[\]]*\]"), "alternation [a|b]"),
    (
        re.compile(r"(?<!\\)\[(?:[^\[\]:\\]*:){1,2}\s*-?[0-9.]+\s*\]"),
        "prompt editing [from:to:when]",
    ),
)
_LATER_POSITIVE = (
    (re.compile(r"<(?:lora|lyco|hypernet):[^>]*>"), "extra networks"),
    (re.compile(r"\bAND\b"), "AND"),
)


@dataclass(slots=True)
class Segment:
    """A run of text of one weight, or, with text None, the end of a chunk."""

    text: str | None
    weight: float


Prompt = tuple[tuple[str | None, float], ...]
"""(text, weight) runs in order; a text of None is BREAK."""


def parse(text: str, *, negative: bool = False) -> Prompt:
    """Split `text` into runs of equal weight, in linear time.

    Raises InvalidJob where the text asks for syntax that this version does not do yet. Extra networks
    and AND mean something in the positive prompt only; elsewhere they are plain text.
    """
    for pattern, name in _LATER if negative else _LATER + _LATER_POSITIVE:
        if found := pattern.search(text):
            field = "negative_prompt" if negative else "prompt"
            raise InvalidJob(
                f"{field}: {name} is not available in this version (found {found.group()[:40]!r})"
            )
    return parse_emphasis(text)


def parse_emphasis(text: str) -> Prompt:
    """The emphasis grammar alone: `a (cat:1.2)` is `(("a ", 1.0), ("cat", 1.2))`."""
    reader = _Reader()
    for match in _TOKEN.finditer(text):
        reader.read(match)
    return tuple((run.text, run.weight) for run in _merged(reader.finish()))


class _Reader:
    """Segments with their final weights, token by token.

    A closing bracket multiplies all segments since its opening one; round and square brackets are
    matched apart, so they may overlap. Bounded depth keeps the whole linear.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._opened: dict[str, list[int]] = {"(": [], "[": []}

    def read(self, match: re.Match[str]) -> None:
        token, weight = match.group(), match.group("weight")
        if token in self._opened:
            self._open(token)
        elif weight is not None and self._opened["("]:
            self._close("(", _bounded(weight))
        elif token in _CLOSING and self._opened[_CLOSING[token][0]]:
            self._close(*_CLOSING[token])
        elif token == "BREAK":
            self.segments.append(Segment(None, 1.0))
        else:
            self.segments.append(Segment(_unescaped(token), 1.0))

    def finish(self) -> list[Segment]:
        """Brackets that were never closed hold to the end."""
        for bracket, factor in _CLOSING.values():
            while self._opened[bracket]:
                self._close(bracket, factor)
        return self.segments

    def _open(self, bracket: str) -> None:
        stack = self._opened[bracket]
        if len(stack) >= MAX_DEPTH:
            raise InvalidJob(f"prompt: brackets nest deeper than the {MAX_DEPTH} levels allowed")
        stack.append(len(self.segments))

    def _close(self, bracket: str, factor: float) -> None:
        for segment in self.segments[self._opened[bracket].pop() :]:
            if segment.text is not None:
                segment.weight *= factor


def _merged(segments: list[Segment]) -> Iterator[Segment]:
    """Join neighbours of equal weight; the empty prompt is one empty run."""
    run: list[str] = []
    weight = 1.0
    empty = True
    for segment in segments:
        empty = False
        if run and (segment.text is None or segment.weight != weight):
            yield Segment("".join(run), weight)
            run = []
        if segment.text is None:
            yield segment
        else:
            run.append(segment.text)
            weight = segment.weight
    if run or empty:
        yield Segment("".join(run), weight)


def _unescaped(token: str) -> str:
    return token[1] if len(token) == 2 and token[0] == "\\" else token


def _bounded(number: str) -> float:
    weight = float(number)
    if abs(weight) > MAX_WEIGHT:
        raise InvalidJob(
            f"prompt: the weight {number[:20]} is not allowed; use -{MAX_WEIGHT} to {MAX_WEIGHT}"
        )
    return weight
