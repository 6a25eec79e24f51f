"""Where pictures are kept that a request wants saved: a folder, or whatever else fsspec can write to."""

import asyncio
from collections.abc import Mapping

from fsspec.core import url_to_fs

from ingress.errors import StoreFailed


class PictureStore:
    """Raises ValueError, naming the key `save_dir`, for an address that is not understood."""

    def __init__(self, address: str) -> None:
        try:
            self._files, self._folder = url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ValueError(f"save_dir: {error}") from None

    async def save(self, files: Mapping[str, bytes]) -> None:
        """Files by their paths below the store's own. Raises StoreFailed."""
        try:
            for path, data in files.items():
                await asyncio.to_thread(self._write, f"{self._folder}/{path}", data)
        except OSError as error:
            raise StoreFailed(
                f"save_images: the pictures were drawn and could not be saved ({type(error).__name__})"
            ) from error

    def _write(self, path: str, data: bytes) -> None:
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, data)
