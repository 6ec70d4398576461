"""What control wants the supervisor to run: model servers and forkservers, as ``processes.json``."""

import json
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

import loopline
from loopline.config import child_environment
from loopline.control.context import Context
from loopline.control.snapshots import replace_json
from loopline.store.db import Row, Tx
from loopline.store.schema import environments, projects, variants

RUNTIME = Path(loopline.__file__).parent / "runtime"
ACCELERATOR = str(Path(msgspec.__file__).parent)  # a model server of the same interpreter borrows its compiled code
FORKSERVER_IDLE_SECONDS = 3600
FORGOTTEN_SECONDS = 600.0  # longer than any server takes to stop
_writing = threading.Lock()


def write(ctx: Context) -> None:
    """Bring ``processes.json`` to what the tables say and tell the supervisor, when anything changed."""
    with _writing:
        with ctx.db.read() as tx:
            document = {"servers": _servers(tx), "forkservers": _forkservers(ctx, tx)}
        text = json.dumps(document, sort_keys=True)
        if ctx.cache.get("processes") == text:
            return
        replace_json(ctx.settings.dir / "processes.json", document)
        ctx.cache["processes"] = text
        _forget(ctx, {entry["id"] for entry in document["servers"]})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(b'{"kind":"processes"}', str(ctx.settings.run_dir / "supervisor.sock"))
        except OSError:
            return  # it looks at the file all the same


def _forget(ctx: Context, wanted: set[str]) -> None:
    """Remove the files of model servers that nobody has wanted for some minutes."""
    before = time.time() - FORGOTTEN_SECONDS
    for folder in (ctx.settings.dir / "servers", ctx.settings.run_dir / "servers"):
        for path in folder.glob("*.*"):
            with suppress(FileNotFoundError):
                if path.stem not in wanted and not path.is_dir() and path.stat().st_mtime < before:
                    path.unlink()


def _servers(tx: Tx) -> list[dict[str, Any]]:
    wanted = sa.select(variants).where(variants.c.status.in_(("Starting", "Ready", "Warm"))).order_by(variants.c.id)
    return [entry["process"] for row in tx.rows(wanted) for entry in row["server"] or ()]


def _forkservers(ctx: Context, tx: Tx) -> list[dict[str, Any]]:
    """One for the environment of each project, as it was pushed last."""
    query = sa.select(environments).join(projects, projects.c.environment == environments.c.id)
    found: dict[str, Row] = {row["key"]: row for row in tx.rows(query) if row["status"] == "Ready"}
    return [_forkserver(ctx, row) for _, row in sorted(found.items())]


def _forkserver(ctx: Context, row: Row) -> dict[str, Any]:
    name = f"fork-{row['key'][:16]}"
    folder = ctx.settings.run_dir / "fork"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = str(folder / f"{name}.sock")
    argv = [row["python"], "-I", str(RUNTIME / "forkserver.py"), "--socket", path]
    if row["preload"]:
        argv += ["--preload", ",".join(row["preload"])]
    argv += ["--idle", str(FORKSERVER_IDLE_SECONDS)]
    return {"id": name, "argv": argv, "environ": child_environment(), "socket": path}


def server(ctx: Context, variant: str, index: int, spec: dict[str, Any], python: str) -> dict[str, Any]:
    """The entry of one model server: {"id", "socket", "status", "process"}; its spec file is written here.

    Each start has a name of its own: what an earlier server of the variant said must not be taken for this one.
    """
    name = f"{variant}-{index}.{ctx.ids.new('sv')[-4:]}"
    folder = ctx.settings.run_dir / "servers"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec_file = ctx.settings.dir / "servers" / f"{name}.json"
    spec_file.parent.mkdir(mode=0o700, exist_ok=True)
    wake = str(ctx.settings.run_dir / "wake.sock")
    replace_json(spec_file, {**spec, "id": name, "wake": wake, "accelerator": ACCELERATOR})
    path, status = str(folder / f"{name}.sock"), str(folder / f"{name}.json")
    argv = [python, "-I", str(RUNTIME / "serve.py"), "--spec", str(spec_file), "--socket", path, "--status", status]
    process = {
        "id": name,
        "argv": argv,
        "environ": {**child_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        "cwd": spec.get("code_dir") or spec["model_dir"],
        "socket": path,
        "status": status,
    }
    return {"id": name, "socket": path, "status": status, "process": process}


def server_state(entry: dict[str, Any]) -> dict[str, Any]:
    """What a model server last said of itself; ``state`` is "absent" before it has said anything."""
    try:
        state: dict[str, Any] = json.loads(Path(entry["status"]).read_text())
    except (OSError, ValueError):
        return {"state": "absent"}
    return state
