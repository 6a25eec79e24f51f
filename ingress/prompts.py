"""The prompts that a request's pictures are drawn from: its styles applied, then its comments removed.

And back: the styles that a prompt holds.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ingress.errors import InvalidRequest, listed
from ingress.schemas.sdapi import GenerationRequest, OverrideSettings
from ingress.settings import Settings, Style

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "hr_prompt": "prompt",
        "hr_negative_prompt": "negative_prompt",
    }
)
"""The fields that are prompts, and which of a style's texts is for them."""

MOST_FOUND = 16
"""Styles that are looked for in a prompt: that bounds the cost, and what is not found stays in the prompt."""

_PLACE = "{prompt}"
_COMMENT = re.compile(r"#[^\n]*(?:\n|$)")


def written(
    request: GenerationRequest, overrides: OverrideSettings, settings: Settings
) -> tuple[GenerationRequest, tuple[str, ...]]:
    """The request with these prompts, and warnings of styles that there are not.

    An empty prompt of the second pass stays empty: it is the first one's. Raises `InvalidRequest` where
    the styles make a prompt too long.
    """
    known = {style.name: style for style in settings.styles}
    names = request.styles or []
    styles = [known[name] for name in names if name in known]
    comments = overrides.enable_prompt_comments
    if comments is None:
        comments = settings.compat_version != "v1.7.0"
    changes: dict[str, Any] = {}
    for field, text in FIELDS.items():
        prompt = getattr(request, field, "")
        if prompt or field == text:
            styled = _styled(prompt, styles, text, field, settings.limits.max_prompt_chars)
            changes[field] = _COMMENT.sub("\n", styled) if comments else styled
    return request.model_copy(update=changes), _warnings([name for name in names if name not in known])


def _warnings(unknown: Sequence[str]) -> tuple[str, ...]:
    return (f"styles: {listed(unknown)} not known, and left out",) if unknown else ()


def without_styles(texts: Mapping[str, str], styles: Sequence[Style]) -> tuple[Mapping[str, str], list[str]]:
    """The prompts, by field, without the styles found in all of them, and the names of these, in order.

    Applied to what is left they give the same prompts again.
    """
    known = {style.name: style for style in styles if not _has_comment(style)}
    names: list[str] = []
    while len(names) < MOST_FOUND:
        for style in known.values():
            left = _all_without(texts, style)
            if left is not None and left != texts:
                texts, names = left, [style.name, *names]
                break
        else:
            break
    return texts, names


def _has_comment(style: Style) -> bool:
    return "#" in f"{style.prompt}{style.negative_prompt}"


def _all_without(texts: Mapping[str, str], style: Style) -> dict[str, str] | None:
    left: dict[str, str] = {}
    for field, prompt in texts.items():
        text = FIELDS[field]
        if not prompt and field != text:
            left[field] = prompt
            continue
        without = _without(prompt, getattr(style, text) or "")
        if without is None or (not without and field != text):
            return None
        left[field] = without
    return left


def _without(prompt: str, addition: str) -> str | None:
    """The prompt that becomes this one with a style's text, None if there is none."""
    if not addition:
        return prompt
    before, *between, after = addition.split(_PLACE) if _PLACE in addition else ("", addition)
    if not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    if _PLACE in addition:
        own = len(prompt) - len("".join((before, *between, after)))
        without = prompt[len(before) : len(before) + max(own, 0) // (len(between) + 1)]
    else:
        without = prompt.removesuffix(addition).removesuffix(", ")
    return without if _with(without, addition) == prompt else None


def _with(prompt: str, addition: str) -> str:
    if _PLACE in addition:
        return addition.replace(_PLACE, prompt)
    return ", ".join(part for part in (prompt, addition) if part)


def _styled(prompt: str, styles: Sequence[Style], text: str, field: str, longest: int) -> str:
    for style in styles:
        prompt = _with(prompt, getattr(style, text) or "")
        if len(prompt) > longest:
            raise InvalidRequest(
                f"{field}: {len(prompt)} characters, styles included, are not allowed. "
                f"Allowed: up to {longest}."
            )
    return prompt
