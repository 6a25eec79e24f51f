"""Writes `docs/api.md` from `ingress/contract.py`: `python -m tools.api`."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ingress.contract import BLACK, FIELDS, REQUESTS, ROUTES, WHITE, WITHIN, Field, Fields, Route

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

INTRODUCTION = """# The API

AUTOMATIC1111's, version 1.7 to 1.10, line by line. Made by `python -m tools.api` from `ingress/contract.py`,
whose lines the tests prove against the application.

- **honoured**: it does what it does there.
- **ignored**: it is accepted and changes nothing. Where that may surprise, the header `X-Warnings` says so.
- **refused**: the answer is an error that names it, `{"error": …, "detail": …, "body": "", "errors": …}`.

Fields that no line names are ignored. Null is "not given".
"""
PLACES = {
    ("/sdapi/v1", "/v1/sdapi/v1"): "Under `/sdapi/v1` and `/v1/sdapi/v1`",
    ("", "/v1"): "Under `/` and `/v1`: extensions and the web interface",
    ("",): "The service's own",
}


def page() -> str:
    routes = "".join(
        f"\n## {PLACES[prefixes]}\n\n{table(('route', '', ''), route_lines(rows))}"
        for prefixes, rows in ROUTES.items()
    )
    return INTRODUCTION + routes + "".join(map(section, FIELDS))


def section(fields: Fields) -> str:
    head = ("field", "default", "", "seen with", "")
    return f"\n## {fields.title}\n\n{table(head, (field_line(fields, each) for each in fields.fields))}"


def route_lines(routes: Iterable[Route]) -> Iterator[Sequence[str]]:
    """Methods of a path that come to the same stand in one line."""
    for (path, state, note), same in groupby(routes, key=lambda route: (route.path, route.state, route.note)):
        methods = ", ".join(route.method for route in same)
        yield f"`{methods} {path.replace('{path:path}', '…')}`", state, note


def field_line(fields: Fields, each: Field) -> Sequence[str]:
    model = WITHIN[fields.within] if fields.within else REQUESTS[fields.routes[0]].model
    known = model.model_fields.get(each.name)
    default = f"`{shown(known.default)}`" if known else ""
    said = each.note or (known.description if known else "") or ""
    return f"`{each.name}`", default, each.state, f"`{shown(each.sample)}`", " ".join(said.split())


def shown(value: Any) -> str:
    """JSON, without pictures' bytes."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace(WHITE, "a white picture").replace(BLACK, "a black picture")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
