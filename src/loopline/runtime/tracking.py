"""What a running job reports: JSON lines appended to ``events`` in its attempt's folder, and copies of artifacts.

The folder is told by the environment, so that processes which a job starts report to the same place. Each event is one
write to a file opened for appending, which keeps lines of several processes whole. Outside a job nothing happens.
"""

import json
import os
import time
from collections.abc import Iterable
from typing import Any

FOLDER_VARIABLE = "LOOPLINE_JOB_FOLDER"
TEXT_CHARS = 6000
_counters: dict[tuple[str, str], int] = {}


def enter(folder: str) -> None:
    """Report to this attempt's folder from here on."""
    os.environ[FOLDER_VARIABLE] = folder


def folder() -> str | None:
    """The attempt's folder; None outside a job."""
    return os.environ.get(FOLDER_VARIABLE)


def write(events: Iterable[dict[str, Any]]) -> None:
    """Append events, each with the time ``at`` added."""
    home = folder()
    if home is None:
        return
    at = time.time()
    lines = [json.dumps({"at": at, **event}, separators=(",", ":"), allow_nan=False) + "\n" for event in events]
    if not lines:
        return
    descriptor = os.open(f"{home}/events", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, "".join(lines).encode())
    finally:
        os.close(descriptor)


def log_metric(key: str, value: Any, step: int | None = None) -> None:
    """One point of a metric; what is not finite is recorded as null. Without ``step`` points are numbered from 0."""
    number = float(value)
    home = folder()
    if home is None:
        return
    if step is None:
        step = _counters.get((home, key), 0)
    _counters[home, key] = step + 1
    finite = number - number == 0
    write([{"kind": "metric", "key": str(key), "value": number if finite else None, "step": int(step)}])


def param(key: str, value: Any) -> dict[str, Any]:
    """The event of a parameter; what is not short JSON becomes a text of at most ``TEXT_CHARS`` characters."""
    try:
        short = len(json.dumps(value, allow_nan=False)) <= TEXT_CHARS
    except (TypeError, ValueError, RecursionError):
        short = False
    return {"kind": "param", "key": str(key), "value": value if short else str(value)[:TEXT_CHARS]}


def log_param(key: str, value: Any) -> None:
    """A setting."""
    write([param(key, value)])


def set_tag(key: str, value: Any) -> None:
    """A label."""
    write([{"kind": "tag", "key": str(key), "value": str(value)[:TEXT_CHARS]}])


def log_artifact(path: Any, name: str | None = None) -> None:
    """Copy a file or folder to the run's artifacts under ``name``. Raises ``FileNotFoundError``, ``ValueError``."""
    home = folder()
    source = os.path.abspath(os.fspath(path))
    if not os.path.exists(source):
        raise FileNotFoundError(f"log_artifact: there is nothing at {source}")
    if home is None:
        return
    place = name or os.path.basename(source)
    if place.startswith("/") or ".." in place.split("/"):
        raise ValueError(f"log_artifact: {place!r} must be a relative path without '..'")
    keep(home, source, place)


def keep(home: str, source: str, place: str) -> None:
    """Copy ``source`` to ``outputs/artifacts/place`` and write one event for each file."""
    import mimetypes

    from . import values

    root = f"{home}/outputs/artifacts"
    if os.path.isdir(source):
        files, _ = values.copy_folder(source, f"{root}/{place}")
        paths = [f"{place}/{file['path']}" if place else file["path"] for file in files]
    else:
        os.makedirs(os.path.dirname(f"{root}/{place}"), exist_ok=True)
        values.copy_file(source, f"{root}/{place}")
        paths = [place]
    kinds = {path: mimetypes.guess_type(path)[0] or "application/octet-stream" for path in paths}
    write({"kind": "artifact", "path": path, "media_type": kind} for path, kind in kinds.items())


def collect_outputs(home: str) -> None:
    """Keep what the job left in the folder ``outputs`` of its working directory."""
    left = os.path.abspath("outputs")
    if os.path.isdir(left) and os.path.realpath(left) != os.path.realpath(f"{home}/outputs"):
        keep(home, left, "")
