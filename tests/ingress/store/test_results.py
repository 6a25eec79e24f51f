import asyncio
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol import Unavailable
from ingress.store.results import Results

CLAIM, OTHER = "a" * 32, "b" * 32


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 of our own."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "deeper" / "results")
    for name, value in (
        ("AWS_ENDPOINT_URL", request.getfixturevalue("s3")),
        ("AWS_ACCESS_KEY_ID", "tests"),
        ("AWS_SECRET_ACCESS_KEY", "tests"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    import boto3

    boto3.client("s3").create_bucket(Bucket="pictures")
    return f"s3://pictures/{uuid.uuid4().hex}"


async def test_what_is_kept_can_be_read_by_another_gateway(url: str) -> None:
    await Results(url).keep(CLAIM, [b"first", b"", b"\x89PNG"])
    results = Results(url)
    assert [await results.read(CLAIM, number) for number in range(4)] == [b"first", b"", b"\x89PNG", None]
    assert await results.kept() == {CLAIM}


async def test_what_is_dropped_is_gone_and_nothing_else(url: str) -> None:
    results = Results(url)
    assert await results.kept() == set()
    await results.drop(CLAIM)
    await results.keep(CLAIM, [b"one"])
    await results.keep(OTHER, [b"other"])
    assert await results.kept() == {CLAIM, OTHER}
    await results.drop(CLAIM)
    await results.drop(CLAIM)
    assert await results.kept() == {OTHER}
    assert await results.read(CLAIM, 0) is None
    assert await results.read(OTHER, 0) == b"other"


async def test_files_of_others_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "0").write_text("mine")
    (tmp_path / "0").write_text("mine")
    assert await Results(str(tmp_path)).kept() == set()


async def test_no_pictures_leave_no_trace(tmp_path: Path) -> None:
    await Results(str(tmp_path)).keep(CLAIM, [])
    assert os.listdir(tmp_path) == []


async def test_storage_that_fails_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    results = Results(str(tmp_path / "file"))
    with pytest.raises(Unavailable, match="cannot be kept"):
        await results.keep(CLAIM, [b"x"])


async def test_a_store_that_cannot_be_reached_is_unavailable(
    url: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not url.startswith("s3:"):
        pytest.skip("is there")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    results = Results(url)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(results.keep(CLAIM, [b"x"]), 30)


def test_an_unknown_kind_of_store_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="results: 'nosuch://x' cannot be used"):
        Results("nosuch://x")
