"""``python -m loopline.gateway --dir DIR --index 0 --listen-fd N``: one gateway process."""

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys

import uvloop

from loopline.config import Settings, load
from loopline.gateway.gateway import Gateway
from loopline.gateway.routing import make_rng


def listening_socket(descriptor: int | None, address: str | None) -> socket.socket:
    """The inherited socket, or a new one bound to ``HOST:PORT``."""
    if descriptor is not None:
        return socket.socket(fileno=descriptor)
    host, _, port = (address or "").rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host.strip("[]"), int(port)))
    return listening


async def run(settings: Settings, index: int, listening: socket.socket, parent: int) -> None:
    """Serve until SIGTERM or the parent's end."""
    gateway = Gateway(settings, index, make_rng(settings.seed, index), parent)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, gateway.request_stop)
    await gateway.start(listening)
    await gateway.run_until_stopped()


def main(arguments: list[str] | None = None) -> int:
    """Run one gateway; the process's exit code."""
    parent = os.getppid()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", required=True)
    parser.add_argument("--index", type=int, default=0)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--listen-fd", type=int)
    where.add_argument("--bind", metavar="HOST:PORT")
    given = parser.parse_args(arguments)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the supervisor
    with contextlib.suppress(ValueError, OSError):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listening = listening_socket(given.listen_fd, given.bind)
    uvloop.run(run(load(dir=given.dir), given.index, listening, parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
