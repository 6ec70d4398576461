"""A small process that plays any part of the tree, and writes down what happens to it.

Not a test: the tests of the supervisor start it by path.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("id")
    parser.add_argument("--journal", required=True)
    parser.add_argument("--socket", help="listen here, and answer")
    parser.add_argument("--listen-fd", type=int, help="answer here")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before the first answer")
    parser.add_argument("--linger", type=float, default=0.0, help="seconds between SIGTERM and the end")
    parser.add_argument("--linger-until", help="a file: no end after SIGTERM before it is there")
    parser.add_argument("--stubborn", action="store_true", help="take no notice of SIGTERM")
    parser.add_argument("--exit", type=int, help="end at once with this code")
    parser.add_argument("--write", type=int, default=0, help="hundreds of bytes to write to stdout")
    parser.add_argument("--spawn", choices=["group", "session"], help="start a sleeper in this or in its own group")
    parser.add_argument("--version", help="makes another command line")
    return parser.parse_args()


TOLD = read_options()


def note(event: str, pid: int | None = None) -> None:
    with open(TOLD.journal, "a") as journal:  # noqa: PTH123 - starts quicker without pathlib
        journal.write(f"{time.time():.4f} {event} {TOLD.id} {pid or os.getpid()}\n")


def on_stop(*_: object) -> None:
    if TOLD.stubborn:
        note("ignored")
        return
    note("asked")
    time.sleep(TOLD.linger)
    while TOLD.linger_until and not os.path.exists(TOLD.linger_until):  # noqa: PTH110
        time.sleep(0.01)
    note("stopped")
    os._exit(0)


def listen() -> socket.socket | None:
    if TOLD.socket:
        if os.path.exists(TOLD.socket):  # noqa: PTH110
            os.unlink(TOLD.socket)  # noqa: PTH108
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(TOLD.socket)
        listener.listen()
        return listener
    if TOLD.listen_fd is not None:
        listener = socket.socket(fileno=TOLD.listen_fd)
        listener.setblocking(True)
        return listener
    return None


def answer(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        body = str(os.getpid()).encode()
        if connection.recv(4096):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


def main() -> None:
    signal.signal(signal.SIGTERM, on_stop)
    note("started")
    if TOLD.spawn:
        note("spawned", subprocess.Popen(["sleep", "600"], start_new_session=TOLD.spawn == "session").pid)
    if TOLD.exit is not None:
        sys.exit(TOLD.exit)
    if TOLD.write:
        sys.stdout.write(("x" * 99 + "\n") * TOLD.write)
        sys.stdout.flush()
        note("written")
    time.sleep(TOLD.delay)
    listener = listen()
    while True:
        if listener:
            answer(listener)
        else:
            signal.pause()


if __name__ == "__main__":
    main()
