"""The model server's process: load, warm up, then listen.

    python -I serve.py --spec FILE.json --socket PATH --status PATH

Started by path in the environment of the model's version, which does not have loopline installed. The status file says
``loading``, ``ready`` or ``failed`` with the reason. SIGTERM finishes what has arrived and exits 0.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopline.runtime.batches import Batcher
    from loopline.runtime.listener import Inbox, Listener, Request

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
SWITCH_INTERVAL_SECONDS = 0.001  # how long a busy predict may keep the event loop's thread waiting


def enter_package() -> None:
    """Make ``loopline`` importable from this file's own place, without the folder around it.

    That folder may be the site-packages of loopline's own environment, whose packages must not be seen here.
    """
    if "loopline" in sys.modules:
        return
    package = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "loopline", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopline"] = module
    spec.loader.exec_module(module)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write by rename, so that a reader sees the old or the new file and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document))
    temporary.rename(path)


class Status:
    """The status file, and the datagram that tells control to look at it."""

    def __init__(self, path: Path, identifier: str, wake: str | None) -> None:
        self._path = path
        self._id = identifier
        self._wake = wake

    def say(self, state: str, error: str | None = None) -> None:
        """Write the state; ``error`` is for a person."""
        document = {"id": self._id, "pid": os.getpid(), "state": state, "error": error, "at": time.time()}
        write_json(self._path, document)
        if self._wake:
            message = json.dumps({"kind": "server", "id": self._id}).encode()
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(message, self._wake)


def confine(limits: dict[str, Any]) -> None:
    """Die with the parent, gain no privileges, and keep to the limits (``memory_mb``, ``open_files``)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.get("memory_mb"):
        size = int(limits["memory_mb"]) << 20
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    if limits.get("open_files"):
        count = int(limits["open_files"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def make_batcher(spec: dict[str, Any]) -> "Batcher":
    """Load the model and predict the warm-up rows. Raises ``CannotServe``."""
    from loopline.runtime.batches import DEFAULT_MAX_BATCH_ROWS, Batcher, ModelError
    from loopline.runtime.loading import CannotServe, load_model
    from loopline.runtime.signature import InputError, Signature

    features = (spec.get("signature") or {}).get("features")
    try:
        signature = Signature(features) if features else None
    except (ValueError, KeyError, TypeError) as error:
        raise CannotServe(f"the signature cannot be used: {error}") from error
    batcher = Batcher(load_model(spec), signature, int(spec.get("max_batch_rows") or DEFAULT_MAX_BATCH_ROWS))
    try:
        batcher.warm_up(spec.get("warmup") or [])
    except (InputError, ModelError) as error:
        raise CannotServe(f"the warm-up prediction failed: {error}") from error
    return batcher


def predict_forever(batcher: "Batcher", inbox: "Inbox", listener: "Listener") -> None:
    """Predict whatever has arrived since the last batch, until the listener says that all is finished."""
    while True:
        requests = inbox.get()
        if requests is None:
            return
        finished = _take_waiting(inbox, requests)
        answers = batcher.answer([(request.content_type, request.body) for request in requests])
        listener.deliver(requests, answers)
        if finished:
            return


def _take_waiting(inbox: "Inbox", requests: "list[Request]") -> bool:
    """Add what else is waiting; True when the end was among it."""
    with contextlib.suppress(queue.Empty):
        while len(requests) < 1024:
            more = inbox.get_nowait()
            if more is None:
                return True
            requests += more
    return False


def serve(batcher: "Batcher", path: Path, status: Status, parent: int) -> int:
    """Listen and predict until SIGTERM; the process's exit code."""
    from loopline.runtime.listener import Listener

    inbox: Inbox = queue.SimpleQueue()
    listener = Listener(path, inbox, parent)
    started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    thread = threading.Thread(target=listener.run, args=(started.put,), name="listener", daemon=True)
    thread.start()
    error = started.get()
    if error is not None:
        status.say("failed", f"the server cannot listen: {error}")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: listener.stop())
    status.say("ready")
    predict_forever(batcher, inbox, listener)
    thread.join(timeout=10)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one model server; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--spec", "--socket", "--status"):
        parser.add_argument(option, type=Path, required=True)
    given = parser.parse_args(arguments)
    parent = os.getppid()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the supervisor
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    spec = json.loads(given.spec.read_text())
    status = Status(given.status, str(spec["id"]), spec.get("wake"))
    status.say("loading")
    confine(spec.get("limits") or {})
    enter_package()
    from loopline.runtime.loading import CannotServe

    try:
        batcher = make_batcher(spec)
    except CannotServe as error:
        traceback.print_exc()
        status.say("failed", str(error))
        return 1
    return serve(batcher, given.socket, status, parent)


if __name__ == "__main__":
    sys.exit(main())
