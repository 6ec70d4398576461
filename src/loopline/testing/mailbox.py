"""A mail server on loopback that keeps what it is given: for tests of whatever sends e-mail."""

import email
import email.policy
import socketserver
import threading
from email.message import EmailMessage
from typing import Any, NamedTuple


class Letter(NamedTuple):
    """One message as it arrived."""

    sender: str
    to: list[str]
    message: EmailMessage

    @property
    def text(self) -> str:
        """The plain text."""
        return str(self.message.get_content()).replace("\r\n", "\n")


class Mailbox:
    """Takes SMTP on a port of its own. ``refuse``: answers to give to the next recipients, such as ``"550 no"``."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.refuse: list[str] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer._converse(self.rfile, self.wfile)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """What the setting ``smtp_url`` is given."""
        return f"smtp://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _converse(self, reader: Any, writer: Any) -> None:
        writer.write(b"220 mailbox\r\n")
        sender = ""
        to: list[str] = []
        for raw in reader:
            line = raw.decode("utf-8", "replace").strip()
            verb = line[:4].upper()
            said = "250 ok"
            if verb == "MAIL":
                sender, to = _address(line), []
            elif verb == "RCPT":
                said = self.refuse.pop(0) if self.refuse else said
                to += [_address(line)] if said.startswith("2") else []
            elif verb == "DATA":
                writer.write(b"354 go on\r\n")
                parsed: Any = email.message_from_bytes(_content(reader), policy=email.policy.default)
                self.letters.append(Letter(sender, to, parsed))
            elif verb == "QUIT":
                said = "221 bye"
            writer.write(f"{said}\r\n".encode())
            if verb == "QUIT":
                return


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]


def _content(reader: Any) -> bytes:
    lines = []
    for raw in reader:
        if raw == b".\r\n":
            break
        lines.append(raw[1:] if raw.startswith(b".") else raw)
    return b"".join(lines)
