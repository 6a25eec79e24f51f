"""Schedules: which text holds at which step."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompts.schedule import Scheduler, Timeline
from engine.protocol import InvalidJob


def spans(text: str, steps: int, before: int = 0, old: bool = False) -> list[tuple[int, str]]:
    return Scheduler(Timeline(steps=steps, before=before, old=old), "prompt").spans(text)


EXAMPLES = [
    ("[cat:dog:0.4]", 20, [(8, "cat"), (20, "dog")]),
    ("[cat:dog:8]", 20, [(8, "cat"), (20, "dog")]),
    ("[cat::0.5] x", 20, [(10, "cat x"), (20, " x")]),
    ("a [b:3]", 10, [(3, "a "), (10, "a b")]),
    ("a [:b:3]", 10, [(3, "a "), (10, "a b")]),
    ("(a [b:c:.5] d:1.2)", 20, [(10, "(a b d:1.2)"), (20, "(a c d:1.2)")]),
    ("[red|blue|] car", 6, list(enumerate(["red car", "blue car", " car"] * 2, 1))),
    ("[fe|]male", 10, list(enumerate(["female", "male"] * 5, 1))),
    ("[a:b:25]", 20, [(20, "a")]),
    ("[a:b:-2]", 20, [(20, "b")]),
    ("[a:b:-0.5]", 20, [(20, "b")]),
    ("[x:1e-1]", 20, [(20, "x")]),
    ("[a:b:c:3]", 20, [(20, "[a:b:c:3]")]),
    ("x [b:3] | y", 20, [(20, "x [b:3] | y")]),
    ("x [b:3] \\", 20, [(20, "x [b:3] \\")]),
    ("[a]", 20, [(20, "[a]")]),
    ("[a:b]", 20, [(20, "[a:b]")]),
    ("a [unbalanced", 20, [(20, "a [unbalanced")]),
    ("((a][:b:c [d:3]", 10, [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    (r"\[a:b:3\] [c:\|:3]", 10, [(3, r"\[a:b:3\] c"), (10, r"\[a:b:3\] \|")]),
    (r"[a\:b:c:3]", 10, [(3, r"a\:b"), (10, "c")]),
    ("[a:[b:c:6]:3]", 10, [(3, "a"), (6, "b"), (10, "c")]),
    ("[[a|b]:c:2]", 4, [(1, "a"), (2, "b"), (4, "c")]),
    ("[(a:1.2):b:2]", 4, [(2, "(a:1.2)"), (4, "b")]),
    ("[a:b: 2 ]", 4, [(2, "a"), (4, "b")]),
    ("[a:b:0.5.5]", 4, [(4, "[a:b:0.5.5]")]),
    ("[a:b:1e999]", 4, [(4, "a")]),
    ("[a:b:-1e999]", 4, [(4, "b")]),
    ("[:3]", 10, [(10, "")]),
    ("[|]", 10, [(10, "")]),
    ("[a|a]", 10, [(10, "a")]),
    # Unbalanced brackets are text; those inside and beside them still schedule.
    ("[(a:b:3] [c:2]", 4, [(2, "[(a:b:3] "), (4, "[(a:b:3] c")]),
    ("[b) [c:2]:d:3]", 4, [(2, "[b) :d:3]"), (4, "[b) c:d:3]")]),
    ("(a [b) c:2]", 4, [(4, "(a [b) c:2]")]),
    # A | that separates no options makes all of the text literal.
    ("(a|b) [c:2]", 4, [(4, "(a|b) [c:2]")]),
    ("[a|b [c:2]", 4, [(4, "[a|b [c:2]")]),
    ("[a|b:2]", 4, [(4, "[a|b:2]")]),
    ("", 3, [(3, "")]),
]


@pytest.mark.parametrize(("text", "steps", "expected"), EXAMPLES)
def test_worked_examples(text: str, steps: int, expected: list[tuple[int, str]]) -> None:
    assert spans(text, steps) == expected


def test_a_fraction_of_a_step_is_dropped() -> None:
    assert spans("[a:b:0.5]", 5) == [(2, "a"), (5, "b")]
    assert spans("[a:b:2.0]", 5) == [(5, "a")]
    assert spans("[a:b:2]", 5) == [(2, "a"), (5, "b")]


def test_second_pass_goes_on_where_the_first_ended() -> None:
    assert spans("[a:b:1.5]", 20) == [(20, "a")]
    assert spans("[a:b:1.5]", 10, before=20) == [(5, "a"), (10, "b")]
    assert spans("[a:b:0.5]", 10, before=20) == [(10, "b")]
    assert spans("[a:b:24]", 10, before=20) == [(4, "a"), (10, "b")]
    assert spans("[a:b:8]", 10, before=20) == [(10, "b")]


def test_old_scheduling_takes_numbers_below_one_for_fractions() -> None:
    assert spans("[a:b:0.5]", 20, old=True) == [(10, "a"), (20, "b")]
    assert spans("[a:b:1.0]", 20, old=True) == [(1, "a"), (20, "b")]
    assert spans("[a:b:8.9]", 20, old=True) == [(8, "a"), (20, "b")]


texts = st.text(alphabet="ab []()|:.0123456789-\\", max_size=80)


@given(texts, st.integers(1, 40))
def test_spans_cover_the_steps_and_always_change(text: str, steps: int) -> None:
    found = spans(text, steps)
    lasts = [last for last, _ in found]
    assert lasts == sorted(set(lasts))
    assert lasts[0] >= 1
    assert lasts[-1] == steps
    assert all(a[1] != b[1] for a, b in pairwise(found))


@given(st.text(alphabet="ab ()\\,.", max_size=80), st.integers(1, 40))
def test_text_without_square_brackets_is_left_as_it_is(text: str, steps: int) -> None:
    assert spans(text, steps) == [(steps, text)]


@given(st.text(alphabet="ab ,.", max_size=10), st.text(alphabet="ab ,.", max_size=10), st.integers(0, 30))
def test_an_edit_within_any_brackets_is_the_edit_of_the_whole(before: str, after: str, when: int) -> None:
    inside = spans(f"([x] [{before}:{after}:{when}]:1.2)", 20)
    whole = spans(f"[([x] {before}:1.2):([x] {after}:1.2):{when}]", 20)
    assert inside == whole


def test_what_a_schedule_writes_is_bounded() -> None:
    assert len(spans("[a|b|c] [d|e] " + "x" * 3900, 40)) == 40
    with pytest.raises(InvalidJob, match=r"^prompt: .* 32000 characters"):
        spans("[a|b|c] [d|e|f|g] " + "x" * 3900, 40)
    with pytest.raises(InvalidJob, match="32000"):
        spans("[|]" * 1200 + "[||][||||][||||||]", 150)  # nothing is written, at great length


def test_depth_is_bounded() -> None:
    assert spans("[" * 32 + "a", 3) == [(3, "[" * 32 + "a")]
    with pytest.raises(InvalidJob, match="deeper than the 32"):
        spans("([" * 16 + "(a", 3)
