"""The files of an attempt's folder: how they are written, claimed and read.

Evidence has to outlive the death of a process, not of the machine's power: nothing here is synced to disk.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH104, PTH108, PTH123

import json
import os
from typing import Any

SPEC = "spec.json"
CLAIM = "claim"
GROUP = "group"
LOG = "log"
LOG_TIMES = "log.times"  # lines of "OFFSET SECONDS": when what stands in the log from there on came
EVENTS = "events"
OUTPUTS = "outputs"
MANIFEST = "outputs.json"
SCRATCH = "tmp"
STOP = "stop"
EXIT = "exit"

REASONS = frozenset({"ok", "error", "timeout", "memory", "disk", "cpu", "stopped", "launch"})
MAX_STATE_BYTES = 64 * 1024 * 1024
SMALL_STATE_BYTES = 64 * 1024


def _write_new(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def write_json(folder: str, name: str, value: Any) -> None:
    """Write a state file whole or not at all: to a temporary name beside it, then renamed."""
    temporary = f"{folder}/.{name}.{os.getpid()}"
    try:
        _write_new(temporary, json.dumps(value, separators=(",", ":")).encode())
        os.rename(temporary, f"{folder}/{name}")
    except OSError:
        _remove(temporary)
        raise


def read_json(folder: str, name: str) -> dict[str, Any] | None:
    """A state file's object; None when it is absent, cut off, or no JSON object."""
    try:
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        with open(descriptor, "rb") as file:
            data = file.read(SMALL_STATE_BYTES)  # a greater size would be reserved at once
            if len(data) == SMALL_STATE_BYTES:
                data += file.read(MAX_STATE_BYTES - SMALL_STATE_BYTES)
            value = json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


def claim(folder: str, pid: int, start_time: int, boot_id: str) -> bool:
    """Take the attempt for one process, for good; False when somebody had it before.

    The claim is linked into place, which is as exclusive as O_EXCL and never shows a claim without its content.
    """
    temporary = f"{folder}/.{CLAIM}.{os.getpid()}"
    _write_new(temporary, json.dumps({"pid": pid, "start_time": start_time, "boot_id": boot_id}).encode())
    try:
        os.link(temporary, f"{folder}/{CLAIM}")
    except FileExistsError:
        return False
    finally:
        _remove(temporary)
    return True


def describe(
    *,
    reason: str,
    token: Any,
    started_at: float,
    ended_at: float,
    code: int | None = None,
    signal: int | None = None,
    error: dict[str, Any] | None = None,
    cpu_seconds: float = 0.0,
    max_rss_bytes: int = 0,
    layers: list[str] | None = None,
) -> dict[str, Any]:
    """The content of ``exit``: how an attempt ended. ``layers`` names the sandbox layers that held."""
    return {
        "code": code,
        "signal": signal,
        "reason": reason,
        "error": error,
        "started_at": started_at,
        "ended_at": ended_at,
        "cpu_seconds": cpu_seconds,
        "max_rss_bytes": max_rss_bytes,
        "token": token,
        "layers": layers or [],
    }


def failure(kind: str, message: str) -> dict[str, Any]:
    """An error that has no place in user code."""
    return {"type": kind, "message": message, "traceback": None, "file": None, "line": None}


def read_exit(folder: str) -> dict[str, Any] | None:
    """How the attempt ended; None when ``exit`` is absent or not what a shim writes."""
    value = read_json(folder, EXIT)
    if value is None or value.get("reason") not in REASONS:
        return None
    numbers = [value.get("started_at"), value.get("ended_at"), value.get("cpu_seconds"), value.get("max_rss_bytes")]
    if not all(isinstance(number, int | float) for number in numbers):
        return None
    if not all(isinstance(value.get(name), int | None) for name in ("code", "signal")):
        return None
    return value if isinstance(value.get("error"), dict | None) else None
