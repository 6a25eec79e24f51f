"""Schedules: `[from:to:when]` changes the text at a step, `[a|b]` changes it at every step.

A text is read once into a tree, and the tree written out for the steps at which it differs. Emphasis is
left in the texts, brackets and backslashes included.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from engine.prompts.emphasis import MAX_DEPTH
from engine.protocol import InvalidJob

MAX_SCHEDULED = 32_000
"""Characters of all the texts of one schedule together, a bracket written out counting as one more."""

_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The evaluations of a sampler's pass, which is what schedules count: Heun makes two a step.

    `steps` are those of this pass, `before` those of the pass before it. There the same prompt goes on:
    fractions of the second pass are 1 to 2, and its numbers of steps count from the first pass' first.
    `old`: a number below 1 is a fraction of the pass, others are its steps.
    """

    steps: int
    before: int = 0
    old: bool = False

    def last_step(self, when: str) -> int:
        """The last step that the change leaves as it was: 0 to `steps`. A decimal point makes a fraction."""
        number = float(when)
        if self.old:
            step = number * self.steps if number < 1 else number
        elif "." in when:
            step = (number - (1 if self.before else 0)) * self.steps
        else:
            step = number - self.before
        return int(max(0.0, min(step, float(self.steps))))


@dataclass(frozen=True, slots=True)
class Edit:
    """`before` up to and including the step of `when`, then `after`."""

    before: "Sequence[Node]"
    after: "Sequence[Node]"
    when: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """The first option in step 1, the second in step 2, …, the first again after the last."""

    options: "Sequence[Sequence[Node]]"


Node = str | Edit | Cycle


@dataclass(slots=True)
class Tree:
    """A text as read: nodes, and of all the schedules in it the moments and the lengths of the cycles."""

    nodes: list[Node]
    whens: set[str] = field(default_factory=set)
    periods: set[int] = field(default_factory=set)


def read(text: str, field: str) -> Tree:
    """A bracket is a schedule if its content is balanced and well formed; else it is text.

    A `|` that separates no options, or a backslash that escapes nothing, makes the whole text literal.
    """
    reader = _Reader(text, field)
    return reader.tree if reader.read() else Tree([text])


class _Open:
    """A bracket not closed yet: the nodes since, and where among them its separators are."""

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.nodes: list[Node] = []
        self.separators: list[int] = []
        self.kinds: set[str] = set()

    def separate(self, separator: str) -> None:
        self.separators.append(len(self.nodes))
        self.kinds.add(separator)

    def sections(self) -> list[list[Node]]:
        cuts = [-1, *self.separators, len(self.nodes)]
        return [self.nodes[a + 1 : b] for a, b in pairwise(cuts)]


class _Reader:
    """One pass over the tokens with a stack of open brackets. Bounded depth keeps it linear."""

    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._field = field
        self._stack = [_Open("")]
        self._open: list[str] = []  # the brackets of the stack
        self._stray = False
        self.tree = Tree(self._stack[0].nodes)

    def read(self) -> bool:
        """Whether the grammar holds for the text as a whole."""
        for match in _TOKEN.finditer(self._text):
            token = match.group()
            if token in "([":
                self._push(token)
            elif token in ")]":
                self._close(token)
            else:
                self._add(token)
        self._fold(0)
        return not self._stray

    def _push(self, bracket: str) -> None:
        if len(self._open) == MAX_DEPTH:
            raise InvalidJob(f"{self._field}: brackets nest deeper than the {MAX_DEPTH} levels allowed")
        self._open.append(bracket)
        self._stack.append(_Open(bracket))

    def _add(self, token: str) -> None:
        innermost = self._stack[-1]
        if token in ":|" and innermost.bracket == "[":
            innermost.separate(token)
        elif token in ("|", "\\"):
            self._stray = True
        innermost.nodes.append(token)

    def _close(self, bracket: str) -> None:
        """What was opened inside and not closed is text; with no partner at all, all that is open is."""
        opening = "(" if bracket == ")" else "["
        if opening not in self._open:
            self._fold(0)
            self._stack[0].nodes.append(bracket)
            return
        while self._open[-1] != opening:
            self._fold(len(self._open) - 1)
        closed = self._pop()
        node = self._schedule(closed)
        if node is None:
            self._keep(closed)
            self._stack[-1].nodes.append(bracket)
        else:
            self._stack[-1].nodes.append(node)

    def _schedule(self, closed: _Open) -> Edit | Cycle | None:
        if closed.kinds == {"|"}:
            options = closed.sections()
            self.tree.periods.add(len(options))
            return Cycle(options)
        if closed.kinds == {":"} and len(closed.separators) <= 2:
            *texts, last = closed.sections()
            if when := _when(last):
                self.tree.whens.add(when)
                return Edit(texts[0] if len(texts) == 2 else [], texts[-1], when)
        return None

    def _fold(self, depth: int) -> None:
        """Make text of the open brackets beyond `depth`."""
        while len(self._open) > depth:
            self._keep(self._pop())

    def _pop(self) -> _Open:
        self._open.pop()
        return self._stack.pop()

    def _keep(self, literal: _Open) -> None:
        self._stray = self._stray or "|" in literal.kinds
        self._stack[-1].nodes += [literal.bracket, *literal.nodes]


def _when(section: Sequence[Node]) -> str | None:
    """The number that is all of a section's text, if it is one."""
    texts = [node for node in section if isinstance(node, str)]
    number = _WHEN.fullmatch("".join(texts)) if len(texts) == len(section) else None
    return number[1] if number else None


class Scheduler:
    """Schedules the texts of one prompt. What they write is bounded for all of them together."""

    def __init__(self, timeline: Timeline, field: str) -> None:
        self._timeline = timeline
        self._field = field
        self._written = 0

    def spans(self, text: str) -> list[tuple[int, str]]:
        """What `text` is, as (last step, text): step s has the first text whose last step is not before s.

        Steps count from 1. Raises InvalidJob for brackets too deep and for too much text.
        """
        tree = read(text, self._field)
        steps = self._timeline.steps
        changes = sorted({self._timeline.last_step(when) for when in tree.whens} - {0} | {steps})
        period = math.lcm(*tree.periods)
        texts: dict[tuple[int, int], str] = {}
        found: list[tuple[int, str]] = []
        for step in changes if period == 1 else range(1, steps + 1):
            moment = bisect_left(changes, step), (step - 1) % period
            if moment not in texts:
                pieces: list[str] = []
                self._write(tree.nodes, step, pieces)
                texts[moment] = "".join(pieces)
            if found and found[-1][1] == texts[moment]:
                found.pop()
            found.append((step, texts[moment]))
        return found

    def _write(self, nodes: Sequence[Node], step: int, pieces: list[str]) -> None:
        for node in nodes:
            match node:
                case str():
                    self._count(len(node))
                    pieces.append(node)
                case Edit():
                    self._count(1)
                    now = node.before if step <= self._timeline.last_step(node.when) else node.after
                    self._write(now, step, pieces)
                case Cycle():
                    self._count(1)
                    self._write(node.options[(step - 1) % len(node.options)], step, pieces)

    def _count(self, characters: int) -> None:
        self._written += characters
        if self._written > MAX_SCHEDULED:
            raise InvalidJob(
                f"{self._field}: scheduling makes more than the {MAX_SCHEDULED} characters of text allowed"
            )
