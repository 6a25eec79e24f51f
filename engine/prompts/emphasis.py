"""Emphasis and chunk breaks: a text without schedules to runs of equal weight.

`(a)` is 1.1 times as strong, `[a]` 1.1 times weaker, `(a:1.3)` 1.3 times as strong; brackets nest and
multiply, a backslash makes one literal, `BREAK` ends a chunk.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from engine.prompts.numbers import NUMBER, bounded
from engine.protocol import InvalidJob

EMPHASIS = 1.1
MAX_DEPTH = 32

Prompt = tuple[tuple[str | None, float], ...]
"""(text, weight) runs in order; a text of None is BREAK."""

_WEIGHT = rf"\s*{NUMBER}\s*\)"
_TOKEN = re.compile(
    rf"""(
    [()\[\]]
    | (?: [^\\()\[\]:B] | :(?!{_WEIGHT}) | B(?!REAK\b) )+   # text
    | :({_WEIGHT})                                          # the end of (text:weight)
    | \\[()\[\]\\]                                          # an escaped bracket or backslash
    | \bBREAK\b
    | .
    )""",
    re.VERBOSE | re.DOTALL,
)

_FACTORS = {"(": EMPHASIS, "[": 1 / EMPHASIS}
_OPENING = {")": "(", "]": "["}


def parse_emphasis(text: str, *, mode: str = "Original", field: str = "prompt") -> Prompt:
    """`a (cat:1.2)` is `(("a ", 1.0), ("cat", 1.2))`; the empty text is one empty run.

    `mode` is one of `protocol.EMPHASIS`: "None" reads nothing but text, "Ignore" drops the weights.
    Raises InvalidJob, naming `field`, for brackets too deep and for weights out of bounds.
    """
    if mode == "None":
        return ((text, 1.0),)
    tokens: list[tuple[str, str]] = _TOKEN.findall(text)
    runs = _weighted(tokens, _factors(tokens, field), field)
    return _merged(((run, 1.0) for run, _ in runs) if mode == "Ignore" else runs)


def _factors(tokens: Sequence[tuple[str, str]], field: str) -> dict[int, float | None]:
    """By index, of each bracket that opens a group its factor, of each that closes one None.

    Round and square brackets are matched apart, so they may overlap. One never closed holds to the end.
    """
    factors: dict[int, float | None] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for index, (token, weight) in enumerate(tokens):
        bracket = ")" if weight else token
        if bracket in opened:
            if len(opened[bracket]) == MAX_DEPTH:
                raise InvalidJob(f"{field}: brackets nest deeper than the {MAX_DEPTH} levels allowed")
            factors[index] = _FACTORS[bracket]
            opened[bracket].append(index)
        elif bracket in _OPENING and opened[_OPENING[bracket]]:
            opening = opened[_OPENING[bracket]].pop()
            factors[index] = None
            if weight:
                factors[opening] = bounded(weight.rstrip(")"), field)
    return factors


def _weighted(
    tokens: Sequence[tuple[str, str]], factors: Mapping[int, float | None], field: str
) -> Iterator[tuple[str | None, float]]:
    """The texts between the brackets, each with the product of what it stands in."""
    rounds, squares = [1.0], [1.0]
    for index, (token, _) in enumerate(tokens):
        if index in factors:
            factor = factors[index]
            stack = squares if token in "[]" else rounds
            if factor is None:
                stack.pop()
            else:
                stack.append(bounded(stack[-1] * factor, field))
        elif token == "BREAK":
            yield None, 1.0
        else:
            escaped = token[0] == "\\" and len(token) == 2
            yield token[escaped:], rounds[-1] * squares[-1]


def _merged(runs: Iterable[tuple[str | None, float]]) -> Prompt:
    """Join neighbours of equal weight."""
    merged: list[tuple[str | None, float]] = []
    for (is_break, weight), group in groupby(runs, key=lambda run: (run[0] is None, run[1])):
        if is_break:
            merged += group
        else:
            merged.append(("".join(text for text, _ in group if text), weight))
    return tuple(merged) or (("", 1.0),)
