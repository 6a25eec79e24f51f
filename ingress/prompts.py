"""The prompts that a request's pictures are drawn from: its styles applied, then its comments removed."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ingress.errors import InvalidRequest, shown
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

SHOWN_STYLES = 5
"""Of the unknown ones that a request names."""

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
    """Short: they become a header."""
    if not unknown:
        return ()
    names = ", ".join(map(shown, unknown[:SHOWN_STYLES]))
    more = len(unknown) - SHOWN_STYLES
    return (f"styles: {names}{f' and {more} more' if more > 0 else ''} not known, and left out",)


def _styled(prompt: str, styles: Sequence[Style], text: str, field: str, longest: int) -> str:
    for style in styles:
        addition = getattr(style, text) or ""
        if "{prompt}" in addition:
            prompt = addition.replace("{prompt}", prompt)
        else:
            prompt = ", ".join(part for part in (prompt, addition) if part)
        if len(prompt) > longest:
            raise InvalidRequest(
                f"{field}: {len(prompt)} characters, styles included, are not allowed. "
                f"Allowed: up to {longest}."
            )
    return prompt
