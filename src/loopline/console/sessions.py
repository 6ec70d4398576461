"""Who is signed in at a browser: in memory, so that a restart signs everybody out."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass

LIFETIME_SECONDS = 12 * 3600
MOST = 1000


@dataclass(frozen=True)
class Session:
    """The API key that was shown at sign-in (looked at again on every page, so that a revoked one ends it)."""

    key: str
    expires_at: float


class Sessions:
    """Sessions by their secret name; safe for threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def begin(self, key: str) -> str:
        """A new session; its name goes into the cookie. The oldest gives way when there are too many."""
        name = secrets.token_urlsafe(32)
        with self._lock:
            now = self._now()
            self._sessions = {n: s for n, s in self._sessions.items() if s.expires_at > now}
            while len(self._sessions) >= MOST:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[name] = Session(key, now + LIFETIME_SECONDS)
        return name

    def key(self, name: str | None) -> str | None:
        """The API key of a session that is still on."""
        with self._lock:
            session = self._sessions.get(name or "")
        return session.key if session and session.expires_at > self._now() else None

    def end(self, name: str | None) -> None:
        """Forget a session."""
        with self._lock:
            self._sessions.pop(name or "", None)
