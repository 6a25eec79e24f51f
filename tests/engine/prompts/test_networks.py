"""Tags of extra networks: taken out of the text, with their strengths."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompts.networks import Network, take_networks
from engine.protocol import InvalidJob


def lora(name: str, te: float, unet: float, **more: Any) -> Network:
    return Network(kind="lora", name=name, te=te, unet=unet, **more)


EXAMPLES = [
    ("x <lora:foo:0.8> y", "x  y", [lora("foo", 0.8, 0.8)]),
    ("x <lora:foo:0.5:0.9>", "x ", [lora("foo", 0.5, 0.9)]),
    ("<lora:foo>", "", [lora("foo", 1, 1)]),
    ("<lora:foo:-1:2:8>", "", [lora("foo", -1, 2, rank=8)]),
    ("<lora:foo:te=.5>", "", [lora("foo", 0.5, 0.5)]),
    ("<lora:foo:unet=.5>", "", [lora("foo", 1, 0.5)]),
    ("<lora:foo:0.3:unet=0.5:dyn=4>", "", [lora("foo", 0.3, 0.5, rank=4)]),
    ("<lyco:foo:1>", "", [lora("foo", 1, 1)]),
    ("<hypernet:h:0.4>", "", [Network(kind="hypernet", name="h", te=0.4, unet=0.4)]),
    ("<lora:a b.c-d_é:1>", "", [lora("a b.c-d_é", 1, 1)]),
    ("<lora:a:1><lora:b:2>", "", [lora("a", 1, 1), lora("b", 2, 2)]),
    ("<unknown:a:1> b", " b", []),
    ("<lora:foo:big>", "<lora:foo:big>", []),
    ("<lora:foo:1e3>", "<lora:foo:1e3>", []),
    ("<lora:foo", "<lora:foo", []),
    ("a < b : c > d <3", "a < b : c > d <3", []),
    ("<<lora:a:1>>", "<>", [lora("a", 1, 1)]),
]


@pytest.mark.parametrize(("text", "left", "networks"), EXAMPLES)
def test_worked_examples(text: str, left: str, networks: list[Network]) -> None:
    assert take_networks(text, "prompt") == (left, tuple(networks))


def test_strength_out_of_bounds_is_refused() -> None:
    with pytest.raises(InvalidJob, match=r"^prompt: the weight 5000 "):
        take_networks("<lora:a:5000>", "prompt")


@given(st.text(alphabet="<>lora:1. =a", max_size=60))
def test_what_is_no_tag_survives(text: str) -> None:
    left, networks = take_networks(text, "prompt")
    if not networks and ":" not in text:
        assert left == text
