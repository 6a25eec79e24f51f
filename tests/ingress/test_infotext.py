"""The grammar of infotexts, both ways."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.infotext import DEFAULTS, infotext, older, read
from ingress.settings import Style

LINE = "Steps: 20, Sampler: Euler, Seed: 5"
DOCUMENTED = (
    "a (cat),\non a mat\nNegative prompt: b,\nc\nSteps: 40, Sampler: DPM++ 2M SDE Karras, CFG scale: 7.0, "
    "Seed: 2162159516, Size: 720x960, Model hash: 7c819b6d13, Model: majicmixRealistic_v7, Clip skip: 2, "
    "Version: v1.7.0"
)


def said(text: str, **styles: Any) -> dict[str, Any]:
    """What was read, without what every text says."""
    return {key: value for key, value in read(text, **styles).items() if value != DEFAULTS.get(key)}


def test_values_that_hold_separators_are_quoted() -> None:
    text = infotext("p", "", {"Model": 'a, "b": é', "Same": "Same", "None": None, "N": 1})
    assert text == 'p\nModel: "a, \\"b\\": é", Same, N: 1'


def test_the_documented_infotext_is_read_key_by_key() -> None:
    assert said(DOCUMENTED) == {
        "Prompt": "a (cat),\non a mat",
        "Negative prompt": "b,\nc",
        "Steps": "40",
        "Sampler": "DPM++ 2M SDE Karras",
        "CFG scale": "7.0",
        "Seed": "2162159516",
        "Size-1": "720",
        "Size-2": "960",
        "Model hash": "7c819b6d13",
        "Model": "majicmixRealistic_v7",
        "Clip skip": "2",
        "Version": "v1.7.0",
        "Emphasis": "Original",
        "Downcast alphas_cumprod": True,
    }


def test_what_is_missing_has_its_default() -> None:
    assert read("") == {**DEFAULTS, "Prompt": "", "Negative prompt": ""}
    assert read(f"{LINE}, RNG: NV, Hires prompt: q")["RNG"] == "NV"
    assert read(f"{LINE}, FP8 weight: Enable")["Cache FP16 weight for LoRA"] is False


@pytest.mark.parametrize(
    ("text", "prompt", "negative"),
    [
        (f"a\nb\nNegative prompt: c\nd\n{LINE}", "a\nb", "c\nd"),
        (f"a \n\n b\r\nNegative prompt:  c \n{LINE}\n\n", "a \n\n b\r", " c "),
        (f"Negative prompt: c\n{LINE}", "", "c"),
        (f"a\nNegative prompt: b\nNegative prompt: c\n{LINE}", "a", "b\nNegative prompt: c"),
        (f"a, Negative prompt: b\n{LINE}", "a, Negative prompt: b", ""),
        (f"{LINE}\n{LINE}", LINE, ""),
        ("a\nNegative prompt: b", "a", "b"),
        ("a\nSteps: 20, Sampler: Euler", "a\nSteps: 20, Sampler: Euler", ""),
        (f"a\u2028Steps: 1\x85b\n{LINE}", "a\u2028Steps: 1\x85b", ""),
        (LINE, "", ""),
    ],
)
def test_the_last_line_holds_the_parameters_if_it_has_three(text: str, prompt: str, negative: str) -> None:
    values = read(text)
    assert (values["Prompt"], values["Negative prompt"]) == (prompt, negative)
    assert ("Steps" in values) is text.rstrip().endswith("Seed: 5")


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ('Hires prompt: "a, \\"b\\": c\\nd é"', {"Hires prompt": 'a, "b": c\nd é'}),
        ('Lora hashes:  "a: 1, b: 2"', {"Lora hashes": "a: 1, b: 2"}),
        ('Model: "a, b', {"Model": '"a'}),
        ('Model: "a" b', {"Model": '"a" b'}),
        ('Model: "\\q"', {"Model": '"\\q"'}),
        ('Model: "\\ud800"', {"Model": '"\\ud800"'}),
        ("Hires prompt:  a ", {"Hires prompt": " a "}),
        ("Hires resize: 512x0", {"Hires resize-1": "512", "Hires resize-2": "0"}),
        ("Size: 512 x 768", {"Size": "512 x 768"}),
        ("ControlNet 0: Module: canny", {"ControlNet 0": "Module: canny"}),
        ("Some-key/2 x: 1", {"Some-key/2 x": "1"}),
        ("(odd) - key: 1", {"key": "1"}),
        ("Clé: 1", {"Clé": "1"}),
        ("x: 1", {}),
        ("Empty: ", {}),
        ("Bare", {}),
        ("Model: a, Model: b", {"Model": "b"}),
    ],
)
def test_pairs(pair: str, expected: dict[str, str]) -> None:
    values = said(f"p\n{LINE}, {pair}, Steps: 20")
    assert values == said(f"p\n{LINE}") | expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v1.5.2", {"Old prompt editing timelines", "Pad conds v0", "Downcast", "Refiner"}),
        ("1.5.2", {"Old prompt editing timelines", "Pad conds v0", "Downcast", "Refiner"}),
        ("v1.6.0", {"Downcast", "Refiner"}),
        ("v1.7.0-224-gabcdef0", {"Downcast", "Refiner"}),
        ("v1.7.0-225-gabcdef0", {"Refiner"}),
        ("v1.8.0", set()),
        ("v1.10.1", set()),
        ("f0.0.17v1.5.0", set()),
        ("v" + "9" * 5000, set()),
    ],
)
def test_old_versions_did_some_things_in_other_ways(version: str, expected: set[str]) -> None:
    values = read(f"[a:b:3]\nSteps: 20, Sampler: DDIM, Seed: 5, Refiner: other, Version: {version}")
    done = {
        "Old prompt editing timelines": "Old prompt editing timelines",
        "Pad conds v0": "Pad conds v0",
        "Downcast": "Downcast alphas_cumprod",
        "Refiner": "Refiner switch by sampling steps",
    }
    assert {name for name, key in done.items() if values.get(key) is True} == expected


def test_a_text_without_a_version_is_not_older() -> None:
    assert not older(read(LINE), 99)
    assert older({"Version": "v1.9.4"}, 1, 10)


def test_old_keys_are_read_as_the_newer_ones() -> None:
    values = said(f"p\n{LINE}, Size: 1024x768, First pass size: 512x384, Hypernet: x, Hypernet strength: 0.5")
    assert values == said(f"p<hypernet:x:0.5>\n{LINE}, Size: 512x384, Hires resize: 1024x768")
    assert said(f"p\n{LINE}, Hypernet: x")["Prompt"] == "p<hypernet:x:1.0>"
    unknown = said(f"p\n{LINE}, Size: 1024x768, First pass size: 0x0")
    assert (unknown["Size-1"], unknown["First pass size-1"]) == ("1024", "0")
    assert "Hires resize-1" not in unknown


def test_styles_are_recognised_where_all_prompts_hold_them() -> None:
    styles = (
        Style(name="art", prompt="oil", negative_prompt="photo"),
        Style(name="frame", prompt="framed {prompt}"),
    )
    values = said(f"framed a, oil\nNegative prompt: b, photo\n{LINE}", styles=styles)
    assert (values["Prompt"], values["Negative prompt"]) == ("a", "b")
    assert values["Styles array"] == ["frame", "art"]
    assert "Styles array" not in said(f"a, oil\nNegative prompt: b\n{LINE}", styles=styles)
    other = said(f"a, oil\nNegative prompt: photo\n{LINE}, Hires prompt: q", styles=styles)
    assert (other["Prompt"], "Styles array" in other) == ("a, oil", False)


keys = st.from_regex(r"[A-Za-z][A-Za-z /-]{1,5}[a-z]", fullmatch=True)


@given(
    prompt=st.text(),
    negative=st.text(),
    pairs=st.dictionaries(keys, st.text(alphabet='ab ,:\n\\"é1'), min_size=3),
)
def test_what_is_written_is_read(prompt: str, negative: str, pairs: dict[str, str]) -> None:
    """But for what the module's docstring names."""
    prompt = prompt.lstrip()
    pairs = {key: "v" if _cannot_be_said(key, value) else value for key, value in pairs.items()}
    values = said(infotext(prompt, negative, {**pairs, "Last": "v"}))
    assert values.pop("Emphasis", "Original") == "Original"
    assert values == pairs | {"Last": "v", "Prompt": prompt, "Negative prompt": negative}


def _cannot_be_said(key: str, value: str) -> bool:
    return value in ("", key) or value.lstrip().startswith('"')


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        " ",
        "aa: ",
        'aa: "',
        'aa: "\\',
        '\\"',
        "aa:,",
        'aa: "\\",',
        "-",
        ":",
        "aa: bb, ",
        '"',
        "\n",
        "Negative prompt:\n",
    ],
)
def test_no_text_takes_long_to_read(piece: str) -> None:
    text = (piece * 2**18)[: 2**18]
    began = time.perf_counter()
    for whole in (text, f"{text}!", f"{LINE}, {text}", f"{LINE}, Model: {text}", f'{LINE}, Model: "{text}'):
        read(whole)
    assert time.perf_counter() - began < 5


def test_what_is_read_can_be_told_as_json() -> None:
    json.dumps(read(f'{LINE}, Model: "\\ud800", Hires prompt: "\\udc00, x"'), ensure_ascii=False).encode()
