"""What a key must be for. Every route says so where it is registered: `dependencies=[READ]`."""

from typing import Literal, get_args

from fastapi import FastAPI
from fastapi.params import Security
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from ingress.settings import KeyScope

Need = KeyScope | Literal["public", "key"]
"""A scope, or `key`: any key will do, or `public`: none is needed."""

NEEDS: tuple[Need, ...] = ("public", "key", *get_args(KeyScope))


async def _enforced_by_authentication() -> None:
    """A dependency that does nothing: FastAPI would only come to it when it has read and parsed the body."""


PUBLIC = Security(_enforced_by_authentication, scopes=["public"])
ANY_KEY = Security(_enforced_by_authentication, scopes=["key"])
READ = Security(_enforced_by_authentication, scopes=["read"])
"""Lists, progress, and what the caller has ordered."""
GENERATE = Security(_enforced_by_authentication, scopes=["generate"])
"""Whatever draws, stores orders, stops them or sets options."""
OPERATE = Security(_enforced_by_authentication, scopes=["operate"])
"""Metrics, and what replicas load."""


def need_of(route: BaseRoute) -> Need:
    """Raises TypeError for a route that does not say it, or says two things."""
    stated = [
        scope
        for dependency in (route.dependencies if isinstance(route, APIRoute) else ())
        if isinstance(dependency, Security)
        for scope in dependency.scopes or ()
    ]
    for need in NEEDS:
        if stated == [need]:
            return need
    raise TypeError(f"{route}: wants one of PUBLIC, ANY_KEY, READ, GENERATE, OPERATE in its dependencies")


def check_routes(app: FastAPI) -> None:
    """Raises TypeError for a route that does not say what it needs, and for one that is there twice."""
    seen: set[tuple[str, str]] = set()
    for route in app.routes:
        need_of(route)
        assert isinstance(route, APIRoute)
        for method in route.methods or ():
            if (method, route.path) in seen:
                raise TypeError(f"{method} {route.path}: registered twice")
            seen.add((method, route.path))
