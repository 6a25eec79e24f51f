"""What only a replica knows of a picture's infotext: the hashes of the files that it was drawn with."""

import json
from collections.abc import Mapping


def completed(text: str, pairs: Mapping[str, str]) -> str:
    """The infotext of a job with these pairs, those that are not empty, before its version."""
    additions = "".join(f", {key}: {_quoted(value)}" for key, value in pairs.items() if value)
    start, last = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    settings, version, number = last.rpartition(", Version: ")
    return f"{start}{settings}{additions}{version}{number}" if version else text + additions


def hashes(named: Mapping[str, str]) -> str:
    """`name: hash, …`, where names have no commas."""
    return ", ".join(f"{name.replace(',', '')}: {hash_}" for name, hash_ in named.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text
