"""Whom the alarms call: an HTTP endpoint on this machine that is subscribed to an SNS topic.

It does what such endpoints do: it visits the address that confirms the subscription, if that is the platform's own, and
keeps the alarms' messages.
"""

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

SECONDS = 30


class Told(NamedTuple):
    """An alarm's message: who, from which state to which, and why."""

    alarm: str
    before: str
    after: str
    reason: str


class Inbox:
    """``with Inbox() as inbox``: listens on a free port of this machine. ``platform``: the address that it trusts."""

    def __init__(self) -> None:
        self.platform = ""
        self.confirmed = False
        self.messages: list[Told] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                inbox.take(self.headers.get("x-amz-sns-message-type", ""), json.loads(body))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="inbox", daemon=True)

    @property
    def place(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Inbox":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, kind: str, body: dict[str, Any]) -> None:
        """Confirm, or keep what an alarm says."""
        if kind == "SubscriptionConfirmation":
            if self.platform and str(body["SubscribeURL"]).startswith(f"{self.platform}/"):
                with urllib.request.urlopen(body["SubscribeURL"], timeout=SECONDS) as answer:
                    self.confirmed = answer.status == 200
        elif kind == "Notification":
            said = json.loads(body["Message"])
            states = (said["OldStateValue"], said["NewStateValue"])
            self.messages.append(Told(said["AlarmName"], *states, said["NewStateReason"]))

    def told(self, alarm: str, after: str) -> Told | None:
        """The newest message that says that an alarm has come into a state."""
        found = [each for each in list(self.messages) if (each.alarm, each.after) == (alarm, after)]
        return found[-1] if found else None
