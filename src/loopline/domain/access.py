"""Who may do what: roles, what each may, and the form of an API key.

Roles: viewer reads; editor also runs, pushes and registers; approver also approves, rejects and forces; admin also
manages people, keys and settings. An invoker may only ask endpoints for predictions.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from loopline.domain import names
from loopline.errors import Forbidden, InvalidInput


class Permission(StrEnum):
    """What a route demands. ``PUBLIC`` is written out, never the default."""

    PUBLIC = "public"
    INVOKE = "invoke"
    READ = "read"
    WRITE = "write"
    APPROVE = "approve"
    ADMIN = "admin"


ROLES: dict[str, frozenset[Permission]] = {
    "invoker": frozenset({Permission.INVOKE}),
    "viewer": frozenset({Permission.READ}),
    "editor": frozenset({Permission.READ, Permission.WRITE, Permission.INVOKE}),
    "approver": frozenset({Permission.READ, Permission.WRITE, Permission.INVOKE, Permission.APPROVE}),
    "admin": frozenset(Permission),
}


_DOES = {
    Permission.INVOKE: "ask for predictions",
    Permission.READ: "read",
    Permission.WRITE: "run, push or change things",
    Permission.APPROVE: "approve",
    Permission.ADMIN: "manage users, keys and settings",
}


@dataclass(frozen=True)
class Actor:
    """Who asks: a user's name, the role of the key that was shown, and that key's id (None for loopline itself)."""

    name: str
    role: str
    key: str | None = None


def check_role(role: str) -> str:
    """``role`` itself when it is one; raises ``InvalidInput`` otherwise."""
    if role not in ROLES:
        raise InvalidInput(f"{role!r} is not a role; roles: {', '.join(ROLES)}")
    return role


def require(actor: Actor, permission: Permission) -> None:
    """Raise ``Forbidden`` unless the actor's role has the permission."""
    if permission is not Permission.PUBLIC and permission not in ROLES.get(actor.role, frozenset()):
        able = ", ".join(role for role, may in ROLES.items() if permission in may)
        raise Forbidden(
            f"{actor.name} has the role {actor.role}, which may not {_DOES[permission]}; roles that may: {able}"
        )


_KEY = re.compile(r"lk_([0-9a-z]{8})_([0-9A-Za-z_-]{43})")


def make_key(key_id: str, secret: str) -> str:
    """The text that a person is shown once. ``key_id``: 8 of [0-9a-z]; ``secret``: 43 URL-safe base-64 characters."""
    return f"lk_{key_id}_{secret}"


def parse_key(text: str) -> tuple[str, str] | None:
    """(key id, secret) of a well-formed key, else None."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


FUNCTION_SCOPE = "function"  # "function:NAME" in a key's endpoints opens a function
QUOTA_WINDOWS = {"minute": 60, "hour": 3600, "day": 86400}
MAX_EXPIRY_DAYS = 3650
MAX_RATE = 1_000_000.0
MAX_QUOTA = 1_000_000_000_000
_QUOTA = re.compile(r"([0-9]{1,13})/([a-z]+)")


def parse_quota(text: str) -> tuple[int, int]:
    """(requests, seconds) of ``10000/day``; raises ``InvalidInput``. Windows begin on the clock, UTC."""
    found = _QUOTA.fullmatch(text)
    if found is None or found[2] not in QUOTA_WINDOWS or not 1 <= int(found[1]) <= MAX_QUOTA:
        raise InvalidInput(f"{text!r} is not a quota; write e.g. 10000/day; windows: {', '.join(QUOTA_WINDOWS)}")
    return int(found[1]), QUOTA_WINDOWS[found[2]]


def limits(rate: float | None, burst: float | None, quota: str | None) -> dict[str, Any]:
    """The limits of a key as they are stored: {"rate", "burst", "quota", "quota_seconds"}, None where there is none.

    ``rate``: predictions a second; ``burst``: how many at once (default: a second's). Raises ``InvalidInput``.
    """
    if rate is not None and not 0 < rate <= MAX_RATE:
        raise InvalidInput(f"rate must be more than 0 and at most {MAX_RATE:g} requests a second, not {rate:g}")
    if burst is not None and rate is None:
        raise InvalidInput("burst says how far a rate may be exceeded for a moment; give a rate, too")
    if burst is not None and not 1 <= burst <= MAX_RATE:
        raise InvalidInput(f"burst must be between 1 and {MAX_RATE:g} requests, not {burst:g}")
    count, seconds = (None, None) if quota is None else parse_quota(quota)
    return {"rate": rate, "burst": burst, "quota": count, "quota_seconds": seconds}


def check_expiry(days: float | None) -> None:
    """Raise ``InvalidInput`` unless a key may be good for so long; None is for ever."""
    if days is not None and not 0 < days <= MAX_EXPIRY_DAYS:
        raise InvalidInput(f"expires_days must be more than 0 and at most {MAX_EXPIRY_DAYS}, not {days}")


def scope(role: str, endpoints: list[str] | None) -> list[str]:
    """What a key of a role opens: an invoker's the endpoints that are named, any other everything."""
    if role != "invoker":
        if endpoints:
            raise InvalidInput("only invoker keys are limited to endpoints; leave endpoints out or make role=invoker")
        return ["*"]
    if not endpoints:
        raise InvalidInput(
            'an invoker key names its endpoints, e.g. endpoints=["patients", "function:resize"], or ["*"] for all'
        )
    return [_scope_name(name) for name in endpoints]


def _scope_name(name: str) -> str:
    """``NAME`` of an endpoint, ``function:NAME``, or ``*`` for all of both."""
    if name != "*":
        kind, _, function = name.partition(":")
        if kind == FUNCTION_SCOPE:
            names.check_name(function, "a function")
        else:
            names.check_name(name, "an endpoint")
    return name


def hash_secret(secret: str) -> str:
    """SHA-256 in hex. The secret holds 256 random bits, so that a slow password hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_matches(secret: str, sha256: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(hash_secret(secret), sha256)
