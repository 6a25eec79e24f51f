"""Emphasis and chunk breaks: as the contract's examples say, and total."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompts import parse_emphasis
from engine.protocol import EMPHASIS, InvalidJob

EXAMPLES = [
    ("a (cat:1.2) on [mat]", [("a ", 1), ("cat", 1.2), (" on ", 1), ("mat", 1 / 1.1)]),
    ("((a)), (best:1.2)", [("a", 1.21), (", ", 1), ("best", 1.2)]),
    ("(((stocking, hat)))", [("stocking, hat", 1.331)]),
    ("[[x]]", [("x", 1 / 1.21)]),
    ("(a (b:2) c)", [("a ", 1.1), ("b", 2.2), (" c", 1.1)]),
    (r"\(x\)", [("(x)", 1)]),
    (r"\[x\] \\", [("[x] \\", 1)]),
    ("(a:1.5", [("a:1.5", 1.1)]),
    ("a) b", [("a) b", 1)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("[a:b]", [("a:b", 1 / 1.1)]),
    ("(a:.5)", [("a", 0.5)]),
    ("(word:  -0.5 )", [("word", -0.5)]),
    ("(a:1e3)", [("a:1e3", 1.1)]),
    ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ("a BREAK b", [("a ", 1), (None, 1), (" b", 1)]),
    ("(a BREAK b:1.3)", [("a ", 1.3), (None, 1), (" b", 1.3)]),
    ("BREAK BREAK", [(None, 1), (" ", 1), (None, 1)]),
    ("BREAKFAST xBREAK B", [("BREAKFAST xBREAK B", 1)]),
    ("(a)(b:1)", [("a", 1.1), ("b", 1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
    ("(a:1.5) b:1.5)", [("a", 1.5), (" b:1.5)", 1)]),
    ("(a:+1)(b:2.)", [("a", 1), ("b", 2)]),
    ("(a:٣)", [("a:٣", 1.1)]),
    ("()", [("", 1)]),
    ("", [("", 1)]),
]

texts = st.text(alphabet="ab ()[]:\\,.1BREAK-<>|", max_size=200)


@pytest.mark.parametrize(("text", "expected"), EXAMPLES)
def test_worked_examples(text: str, expected: list[tuple[str | None, float]]) -> None:
    parsed = parse_emphasis(text)
    assert [run for run, _ in parsed] == [run for run, _ in expected]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in expected])


@given(texts)
def test_every_text_parses_and_plain_characters_survive(text: str) -> None:
    try:
        parsed = parse_emphasis(text)
    except InvalidJob as error:
        refused = error.message
        assert "nest deeper" in refused or "weight" in refused
        return
    kept = "".join(run for run, _ in parsed if run)
    for letter in "ab,":
        assert kept.count(letter) == text.count(letter)


@given(texts)
def test_neighbours_differ_in_weight(text: str) -> None:
    parsed = parse_emphasis(text) if text.count("(") + text.count("[") <= 32 and ":" not in text else ()
    for (a, weight_a), (b, weight_b) in pairwise(parsed):
        assert a is None or b is None or weight_a != weight_b


@given(texts.filter(lambda text: "BREAK" not in text))
def test_mode_none_takes_the_text_as_it_is(text: str) -> None:
    assert parse_emphasis(text, mode="None") == ((text, 1.0),)


def test_modes_differ_in_what_a_bracket_does() -> None:
    text = r"a (cat:1.2) \(b\) BREAK c"
    runs = {mode: parse_emphasis(text, mode=mode) for mode in EMPHASIS}
    assert runs["Original"] == runs["No norm"]
    assert runs["Original"] == (("a ", 1), ("cat", 1.2), (" (b) ", 1), (None, 1), (" c", 1))
    assert runs["Ignore"] == (("a cat (b) ", 1), (None, 1), (" c", 1))
    assert runs["None"] == ((text, 1),)


@pytest.mark.parametrize("text", ["(a:1000.5)", "(a:-99999)", "(" + "a:9" * 4 + "9" * 400 + ")"])
def test_weight_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match=r"^hr_prompt: the weight .* -1000 to 1000"):
        parse_emphasis(text, field="hr_prompt")


def test_product_of_weights_is_bounded_too() -> None:
    assert parse_emphasis("((a:30):30)") == (("a", 900.0),)
    with pytest.raises(InvalidJob, match="27000"):
        parse_emphasis("(((a:30):30):30)")


def test_depth_is_bounded_and_escaped_brackets_do_not_count() -> None:
    ((_, weight),) = parse_emphasis("(" * 32 + "a")
    assert weight == pytest.approx(1.1**32)
    assert parse_emphasis("\\(" * 40) == (("(" * 40, 1.0),)
    with pytest.raises(InvalidJob, match="deeper than the 32"):
        parse_emphasis("(" * 33 + "a")
