"""Sick model servers: taken out of service, reported to the supervisor, and taken back when they answer again.

A server is sick when it has answered nothing for longer than its endpoint's timeout although requests wait for it, when
it fails one request after the other while another server of the same variant does not, or when what it sends is no
frame. It gets no more requests; those that it has are answered 503. The supervisor is asked to restart it. It is in
service again when another process answers at its socket, or when it answers after all what it was silent about.
"""

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loopline.gateway.links import Link
from loopline.gateway.logs import log
from loopline.gateway.routing import Endpoint

FAILURES = 20  # in a row
WELL_SECONDS = 10.0  # for how long a good answer of a sibling says that requests can be answered
GRACE_SECONDS = 1.0  # how long a sick server may take to finish
ASK_AGAIN_SECONDS = 10.0
LATE_SECONDS = 0.25  # the requests that it is silent about have been answered 504 by then
GAP_SECONDS = 1.0
KEPT = 20


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
                    elif reason := self._complaint(link, variant.links, endpoint.timeout_seconds, now):
                        self._eject(link, endpoint.name, variant.name, reason, now)
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
        server = Path(link.path).name.removesuffix(".sock")
        log("model server taken out of service", server=server, endpoint=endpoint, variant=variant, reason=reason)
        self.ejections.append(
            {"server": server, "endpoint": endpoint, "variant": variant, "reason": reason, "at": time.time()}
        )
        link.eject()
        self._ask(link, now)

    def _look_after(self, link: Link, now: float) -> None:
        if link.heard and not link.failures:
            link.take_back()
        elif now - link.asked_at > ASK_AGAIN_SECONDS:
            self._ask(link, now)

    def _ask(self, link: Link, now: float) -> None:
        """Have the supervisor restart the server; it may not be there, and is asked again."""
        link.asked_at = now
        name = Path(link.path).name.removesuffix(".sock")
        message = json.dumps({"kind": "restart", "id": name, "grace_seconds": GRACE_SECONDS}).encode()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(message, self._supervisor)
