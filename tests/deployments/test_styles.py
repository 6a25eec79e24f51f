from pathlib import Path

import pytest

from deployments.access import settings_of
from deployments.config import GatewayConfig
from deployments.styles import read_styles
from ingress.settings import Style


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "styles.csv"
    path.write_bytes(content)
    return path


def test_styles_are_read_as_the_user_interface_writes_them(tmp_path: Path) -> None:
    content = (
        '\ufeffname,prompt,negative_prompt\r\nart,"oil, ""fine"", {prompt}",\r\n'
        "--- more ---\r\n,nameless,\r\nübel,a,b,c\r\nart,later,x\r\n"
    )
    assert read_styles(file(tmp_path, content.encode())) == (
        Style(name="art", prompt="later", negative_prompt="x"),
        Style(name="--- more ---"),
        Style(name="übel", prompt="a", negative_prompt="b"),
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must begin with the line name"),
        (b"a,b,c\nx,y,z\n", "must begin with the line name"),
        (b"name,prompt\n\xff,x\n", "not CSV in UTF-8"),
        (b"name,prompt\nx," + b"a" * 200_000, "not CSV"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key_named(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^styles_file: .*{reason}"):
        read_styles(file(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    config = GatewayConfig(auth="off", styles_file=tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"^styles_file: cannot read .*No such file"):
        settings_of(config, bind_host="127.0.0.1")


def test_the_gateways_styles_are_the_files(tmp_path: Path) -> None:
    path = file(tmp_path, b"name,prompt,negative_prompt\na,b,c\n")
    config = GatewayConfig(auth="off", styles_file=path)
    settings = settings_of(config, bind_host="127.0.0.1")
    assert settings.styles == (Style(name="a", prompt="b", negative_prompt="c"),)
