"""Orders' pictures, in a folder or a bucket that all gateways share: `<claim>/<number>`."""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from engine.protocol import Unavailable

logger = logging.getLogger(__name__)

OURS = re.compile(r"[0-9a-f]{32}")
"""A claim. What has another name was not put there by us, and is left alone."""

T = TypeVar("T")


class Results:
    """`url` is a path, or fsspec's: `s3://bucket/prefix`, for which the process' environment has credentials.

    Raises ValueError for what cannot be used. Failures of the storage itself are `Unavailable`. Nothing is
    made before there is something to keep.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = url_to_fs(url, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise ValueError(f"results: {url!r} cannot be used: {error}") from None
        self._failures = _failures(self._files.protocol)

    async def keep(self, claim: str, pictures: Sequence[bytes]) -> None:
        """When this returns, all of them are kept. They are not to be seen before the order is done."""
        await self._in_thread(lambda: self._write(claim, pictures))

    async def read(self, claim: str, number: int) -> bytes | None:
        """None if it is gone."""
        return await self._in_thread(lambda: self._read(claim, number))

    async def drop(self, claim: str) -> None:
        """Delete what a claim's gateway has put there. That there is nothing is no error."""
        await self._in_thread(lambda: self._remove(claim))

    async def kept(self) -> set[str]:
        """The claims of which there is something. As slow as there is much."""
        return await self._in_thread(self._claims)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(work)
        except self._failures as error:
            logger.error("results cannot be kept or read: %s: %s", type(error).__name__, error)
            raise Unavailable("Results cannot be kept or read now.", 5.0) from error

    def _write(self, claim: str, pictures: Sequence[bytes]) -> None:
        local = isinstance(self._files, LocalFileSystem)
        if local and pictures:
            self._files.makedirs(f"{self._root}/{claim}", exist_ok=True)
        for number, picture in enumerate(pictures):
            with self._files.open(f"{self._root}/{claim}/{number}", "wb") as file:
                file.write(picture)
                if local:  # as durable as the order in the database
                    file.flush()
                    os.fsync(file.fileno())

    def _read(self, claim: str, number: int) -> bytes | None:
        try:
            return bytes(self._files.cat_file(f"{self._root}/{claim}/{number}"))
        except FileNotFoundError:
            return None

    def _remove(self, claim: str) -> None:
        try:
            self._files.rm(f"{self._root}/{claim}", recursive=True)
        except FileNotFoundError:
            return

    def _claims(self) -> set[str]:
        self._files.invalidate_cache()
        paths = [path.split("/") for path in self._files.find(self._root)]
        return {path[-2] for path in paths if len(path) > 1 and OURS.fullmatch(path[-2])}


def _failures(protocol: str | Sequence[str]) -> tuple[type[Exception], ...]:
    """What is raised where the storage fails. s3fs makes OSErrors of what S3 answers, and of nothing else."""
    if "s3" not in protocol:
        return (OSError,)
    from botocore.exceptions import BotoCoreError

    return (OSError, BotoCoreError)
