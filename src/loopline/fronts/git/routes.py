"""What git asks for where, and who may: smart HTTP only (git help http-protocol)."""

from dataclasses import dataclass
from typing import Literal

from loopline.domain.access import Permission

FETCH: Literal["git-upload-pack"] = "git-upload-pack"
PUSH: Literal["git-receive-pack"] = "git-receive-pack"


@dataclass(frozen=True)
class Route:
    """One question of git's: ``place`` follows ``/git/PROJECT.git/``; ``service`` is what it is about."""

    method: Literal["GET", "POST"]
    place: str
    service: Literal["git-upload-pack", "git-receive-pack"]
    permission: Permission | None


TABLE = (
    Route("GET", "info/refs", FETCH, Permission.READ),
    Route("GET", "info/refs", PUSH, Permission.WRITE),
    Route("POST", FETCH, FETCH, Permission.READ),
    Route("POST", PUSH, PUSH, Permission.WRITE),
)


def check(table: tuple[Route, ...]) -> None:
    """Raise ``TypeError`` for a route that must not be served."""
    for route in table:
        if not isinstance(route.permission, Permission) or route.permission is Permission.PUBLIC:
            raise TypeError(f"{route.method} /git/PROJECT.git/{route.place} ({route.service}) declares no permission")
