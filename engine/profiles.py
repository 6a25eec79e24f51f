"""What was measured of a device once, kept for the next start: JSON files in a cache folder."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atelier" / "profiles"


class Profiles:
    """Measurements by what they depend on. Without a folder nothing is kept.

    Deleting the folder is always safe. A file that cannot be read is measured anew; a folder that cannot be
    written to is logged, no error.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """What is kept for a key, or else is measured now. Both are JSON, as it comes back from a file."""
        path = self._path(key)
        kept = _read(path) if path else None
        if kept is not None and kept.get("key") == _as_json(key):
            return kept.get("measured")
        measured = _as_json(measure())
        if path:
            _write(path, {"key": key, "measured": measured})
        return measured

    def _path(self, key: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Another process reads the former file or this, never a part of it."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        partial.replace(path)
    except OSError as error:
        logger.warning("what was measured of the device is not kept (%s)", type(error).__name__)
