from typing import Any

import pytest
from pydantic import ValidationError

from ingress.schemas.sdapi import MAX_NESTING, MAX_VALUES, Txt2ImgRequest


@pytest.mark.parametrize(
    ("field", "given", "understood"),
    [
        ("steps", "20", 20),
        ("steps", " 20 ", 20),
        ("steps", 20.7, 20),
        ("steps", "20.7", 20),
        ("seed", -1.0, -1),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("steps", True, 1),
        ("hr_second_pass_steps", 10.0, 10),
        ("cfg_scale", 7, 7.0),
        ("cfg_scale", "7.5", 7.5),
        ("cfg_scale", True, 1.0),
        ("prompt", 5, "5"),
        ("prompt", 1.5, "1.5"),
        ("styles", ["a", 1], ["a", "1"]),
        ("tiling", 0, False),
        ("tiling", "off", False),
        ("enable_hr", "yes", True),
        ("send_images", 1, True),
        ("override_settings", [], {}),
        ("alwayson_scripts", [], {}),
    ],
)
def test_what_clients_write_is_what_they_mean(field: str, given: Any, understood: Any) -> None:
    value = getattr(Txt2ImgRequest.model_validate({field: given}), field)
    assert value == understood
    assert type(value) is type(understood)


@pytest.mark.parametrize("field", list(Txt2ImgRequest.model_fields))
def test_null_is_not_given(field: str) -> None:
    assert Txt2ImgRequest.model_validate({field: None}) == Txt2ImgRequest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cfg_scale", float("nan")),
        ("cfg_scale", float("inf")),
        ("cfg_scale", "nan"),
        ("cfg_scale", "-Infinity"),
        ("cfg_scale", 10**400),
        ("cfg_scale", "abc"),
        ("cfg_scale", [7]),
        ("steps", float("nan")),
        ("steps", "inf"),
        ("steps", ""),
        ("steps", "twenty"),
        ("steps", "9" * 5000),
        ("steps", {}),
        ("seed", 2**63),
        ("seed", -(2**63) - 1),
        ("seed", 1e300),
        ("enable_hr", 2),
        ("enable_hr", "maybe"),
        ("prompt", ["a"]),
        ("prompt", "\ud800"),
        ("styles", "a"),
        ("styles", ["\udfff"]),
        ("script_args", [1, [float("nan")]]),
        ("override_settings", {"a": {"b": float("-inf")}}),
        ("override_settings", {"\ud800": 1}),
        ("override_settings", [1]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        Txt2ImgRequest.model_validate({field: value})


def test_nesting_is_bounded() -> None:
    deep: list[Any] = []
    for _ in range(MAX_NESTING):
        deep = [deep]
    assert Txt2ImgRequest.model_validate({"script_args": deep}).script_args == deep
    with pytest.raises(ValidationError, match="script_args: nested deeper"):
        Txt2ImgRequest.model_validate({"script_args": [[deep]]})


def test_the_number_of_values_is_bounded() -> None:
    values = [0] * MAX_VALUES
    assert Txt2ImgRequest.model_validate({"script_args": values}).script_args == values
    with pytest.raises(ValidationError, match="script_args: more than"):
        Txt2ImgRequest.model_validate({"script_args": [*values, 0]})
