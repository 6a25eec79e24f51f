"""The emphasis grammar: total, linear, and as the contract's examples say."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompts import parse, parse_emphasis
from engine.protocol import InvalidJob

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
    ("BREAKFAST", [("BREAKFAST", 1)]),
    ("(a)(b:1)", [("a", 1.1), ("b", 1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
    ("", [("", 1)]),
]


@pytest.mark.parametrize(("text", "expected"), EXAMPLES)
def test_worked_examples(text: str, expected: list[tuple[str | None, float]]) -> None:
    parsed = parse_emphasis(text)
    assert [run for run, _ in parsed] == [run for run, _ in expected]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in expected])


@given(st.text(alphabet="ab ()[]:\\,.1BREAK-<>|", max_size=200))
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


@pytest.mark.parametrize(
    "text",
    [
        "(" * 4000,
        ":" * 4000,
        "\\" * 4000,
        "(a:1.1)" * 570,
        ":" + "1" * 3999,
        ":" + " " * 3999,
        ":1" * 2000,
        "(" * 32 + "a" * 3900,
        "[" * 4000,
        "[a" * 2000,
        "[:" * 2000,
        "[" + "a:" * 1999,
        "<lora:" * 660,
    ],
)
def test_worst_cases_stay_linear(text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(InvalidJob):
        parse(text)
    assert time.process_time() - began < 0.2  # 50 ms is the promise; 0.2 s would be quadratic already


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a <lora:x:0.5>", "extra networks"),
        ("a AND b", "AND"),
        ("[a|b] c", "alternation"),
        ("[a:b:0.5]", "prompt editing"),
        ("[b:8]", "prompt editing"),
        ("[a::.5]", "prompt editing"),
    ],
)
def test_syntax_that_is_not_done_is_refused_by_name(text: str, name: str) -> None:
    with pytest.raises(InvalidJob, match=name):
        parse(text)


@pytest.mark.parametrize("text", ["a <lora:x:0.5>", "a AND b"])
def test_negative_prompt_takes_extra_networks_and_and_as_text(text: str) -> None:
    assert parse(text, negative=True) == ((text, 1.0),)


def test_weight_out_of_bounds_is_refused() -> None:
    with pytest.raises(InvalidJob, match="99999"):
        parse("(a:99999)")
