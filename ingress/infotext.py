"""The infotext: a picture's parameters as one text, in the picture and in `info`.

prompt
Negative prompt: negative prompt
key: value, key: value, …
"""

import json
from collections.abc import Mapping


def infotext(prompt: str, negative_prompt: str, pairs: Mapping[str, object]) -> str:
    """The text of one picture. Pairs whose value is None are left out."""
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{_line(pairs)}".strip()


def _line(pairs: Mapping[str, object]) -> str:
    return ", ".join(
        key if key == str(value) else f"{key}: {_quoted(str(value))}"
        for key, value in pairs.items()
        if value is not None
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text
