"""Sick model servers: taken out of service, reported to the supervisor, and taken back when they answer again.

A server is sick when it has answered nothing for longer than its endpoint's timeout although requests wait for it, when
it fails one request after the other while another server of the same variant does not, or when what it sends is no
frame. It gets no more requests; those that it has are answered 503. The supervisor is asked to restart it. It is in
service again when another process answers at its socket, or when it answers after all what it was silent about.

A model server that fails all requests for some seconds while no other does better keeps them: taken out, it would leave
nobody. The supervisor is asked for another process in its place, as long as it fails, and knows when that is in vain.
Functions are left alone: what they answer is often what somebody else answered them.
"""

import contextlib
import json
import math
import socket
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loopline.domain.access import FUNCTION_SCOPE
from loopline.gateway.links import Link
from loopline.gateway.logs import log
from loopline.gateway.routing import Endpoint

FAILURES = 20  # in a row
FAILING_SECONDS = 5.0  # they go on for so long before a server is replaced that nobody does better than
WELL_SECONDS = 10.0  # for how long a good answer of a sibling says that requests can be answered
GRACE_SECONDS = 1.0  # how long a sick server may take to finish
ASK_AGAIN_SECONDS = 10.0
LATE_SECONDS = 0.25  # the requests that it is silent about have been answered 504 by then
GAP_SECONDS = 1.0
KEPT = 20
_FUNCTION = f"{FUNCTION_SCOPE}:"


class Health:
    """Looks at the links of one gateway. ``ejections`` are the newest ones, for the state file."""

    def __init__(self, run_dir: Path) -> None:
        self.ejections: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._supervisor = str(run_dir / "supervisor.sock")

    def look(self, endpoints: Iterable[Endpoint], now: float) -> bool:
        """To be called every tick; whether a server was taken out of service."""
        before = self.ejections[-1] if self.ejections else None
        for endpoint in endpoints:
            for variant in endpoint.asked:
                for link in variant.links:
                    if link.sick:
                        self._look_after(link, now)
                        continue
                    heard = link.heard
                    if reason := self._complaint(link, variant.links, endpoint.timeout_seconds, now):
                        self._eject(link, endpoint.name, variant.name, reason, now)
                    elif heard and not endpoint.name.startswith(_FUNCTION):
                        self._look_at_failures(link, endpoint.name, variant.name, now)
        return (self.ejections[-1] if self.ejections else None) is not before

    @staticmethod
    def _complaint(link: Link, siblings: list[Link], patience: float, now: float) -> str | None:
        """What is wrong with a server; None when nothing is."""
        if now - link.looked_at > GAP_SECONDS:  # nobody looked, so that nobody knows how long it has been silent
            link.quiet_since = now
        link.looked_at = now
        if link.broke:
            return "it sent what is no frame"
        if link.heard or not link.pending:
            if link.heard and not link.failures:
                link.well_at = now
            link.heard, link.quiet_since = False, now
            if link.failures >= FAILURES and any(
                other is not link and now - other.well_at < WELL_SECONDS for other in siblings
            ):
                return f"it failed {link.failures} requests in a row, which others of its kind do not"
            return None
        if now - link.quiet_since > patience + LATE_SECONDS:
            return f"it has answered nothing for {patience:g} s while {len(link.pending)} requests waited"
        return None

    def _eject(self, link: Link, endpoint: str, variant: str, reason: str, now: float) -> None:
        self._note("ejected", "model server taken out of service", link, endpoint, variant, reason)
        link.eject()
        self._ask(link, now)

    def _note(self, kind: str, what: str, link: Link, endpoint: str, variant: str, reason: str) -> None:
        told = {"server": _server(link), "endpoint": endpoint, "variant": variant, "reason": reason}
        log(what, **told)
        self.ejections.append({**told, "kind": kind, "at": time.time()})

    def _look_at_failures(self, link: Link, endpoint: str, variant: str, now: float) -> None:
        """Have a server replaced that nothing but failures was heard of for some time."""
        if link.failures < FAILURES:
            link.failing_at = math.inf
            return
        link.failing_at = min(link.failing_at, now)
        if now - link.failing_at < FAILING_SECONDS or now - link.asked_at < ASK_AGAIN_SECONDS:
            return
        if link.asked_at < link.failing_at:
            reason = f"it failed {link.failures} requests in a row, and no other server of {variant} does better"
            self._note("failing", "model server fails whatever it is asked", link, endpoint, variant, reason)
        link.asked_at = now
        self._tell({"kind": "replace", "id": _server(link)})

    def _look_after(self, link: Link, now: float) -> None:
        if link.heard and not link.failures:
            link.take_back()
        elif now - link.asked_at > ASK_AGAIN_SECONDS:
            self._ask(link, now)

    def _ask(self, link: Link, now: float) -> None:
        """Have the supervisor restart the server; it may not be there, and is asked again."""
        link.asked_at = now
        self._tell({"kind": "restart", "id": _server(link), "grace_seconds": GRACE_SECONDS})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(json.dumps(message).encode(), self._supervisor)


def _server(link: Link) -> str:
    """The name by which the supervisor knows the server."""
    return Path(link.path).name.removesuffix(".sock")
