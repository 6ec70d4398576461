"""What control wants the supervisor to run: model servers and forkservers, as ``processes.json``."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

import loopline
from loopline.config import child_environment
from loopline.control.context import Context
from loopline.control.snapshots import replace_json
from loopline.domain import scaling
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints, environments, functions, projects, variants

RUNTIME = Path(loopline.__file__).parent / "runtime"
ACCELERATOR = str(Path(msgspec.__file__).parent)  # a model server of the same interpreter borrows its compiled code
FORKSERVER_IDLE_SECONDS = 3600
KEPT_SECONDS = 1_000_000  # a forkserver whose children serve must not go before they do
# Every numeric library looks at one of these.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
FORGOTTEN_SECONDS = 600.0  # longer than any server takes to stop
LOGS_SECONDS = 7 * 86400.0  # after which nobody looks at what a server that has gone printed
_writing = threading.Lock()


def write(ctx: Context) -> None:
    """Bring ``processes.json`` to what the tables say and tell the supervisor, when anything changed."""
    with _writing:
        with ctx.db.read() as tx:
            servers = _servers(tx)
            forks = {entry["fork"] for entry in servers if entry.get("fork")}
            forkservers, budgets = _forkservers(ctx, tx, forks), _budgets(tx)
        document = {"servers": servers, "forkservers": forkservers, "budgets": budgets}
        text = json.dumps(document, sort_keys=True)
        if ctx.cache.get("processes") == text:
            return
        replace_json(ctx.settings.dir / "processes.json", document)
        ctx.cache["processes"] = text
        _forget(ctx, {entry["id"] for entry in servers})
    tell(ctx, {"kind": "processes"})


def tell(ctx: Context, *messages: dict[str, Any]) -> None:
    """Datagrams to the supervisor. One that is not there looks at its file, and is told again what matters."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for message in messages:
            with suppress(OSError):
                sender.sendto(json.dumps(message).encode(), str(ctx.settings.run_dir / "supervisor.sock"))


def _forget(ctx: Context, wanted: set[str]) -> None:
    """Remove the files of model servers that nobody has wanted for some minutes, and their logs after some days."""
    before = time.time() - FORGOTTEN_SECONDS
    for path in (ctx.settings.dir / "logs").glob("va_*.log*"):
        with suppress(FileNotFoundError):
            if path.name.partition(".log")[0] not in wanted and path.stat().st_mtime < time.time() - LOGS_SECONDS:
                path.unlink()
    for folder in (ctx.settings.dir / "servers", ctx.settings.run_dir / "servers"):
        for path in folder.glob("*.*"):
            with suppress(FileNotFoundError):
                if path.stem not in wanted and not path.is_dir() and path.stat().st_mtime < before:
                    path.unlink()
    _forget_scratch(ctx, wanted)


def _forget_scratch(ctx: Context, wanted: set[str]) -> None:
    """Remove the temporary files of model servers that have been unwanted for some minutes: one that still finishes its
    requests may need them. A process that took another one's place has its own beside those."""
    unwanted: dict[Path, float] = ctx.cache.setdefault("scratch", {})
    now = ctx.clock.now()
    found = set((ctx.settings.run_dir / "servers").glob("*.tmp"))
    over = {path for path in found if not {path.stem, path.stem.rpartition(".")[0]} & wanted}
    for path in unwanted.keys() - over:
        del unwanted[path]
    for path in over:
        if now - unwanted.setdefault(path, now) > FORGOTTEN_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _servers(tx: Tx) -> list[dict[str, Any]]:
    wanted = sa.select(variants).where(variants.c.status.in_(("Starting", "Ready", "Warm"))).order_by(variants.c.id)
    found = [entry["process"] for row in tx.rows(wanted) for entry in row["server"] or ()]
    for row in tx.rows(sa.select(functions).where(functions.c.status != "Deleted").order_by(functions.c.id)):
        found += [entry["process"] for entry in (*(row["server"] or ()), *(row["successor"] or ()))]
    return found


def specs(ctx: Context, tx: Tx) -> Iterator[str]:
    """Of each server that is wanted, its process and what that was told when it was made, as text."""
    for process in _servers(tx):
        yield json.dumps(process)
        with suppress(FileNotFoundError):
            yield (ctx.settings.dir / "servers" / f"{process['id']}.json").read_text()


def _budgets(tx: Tx) -> dict[str, float]:
    """The memory in MB that the servers of each endpoint with many models may take together."""
    rows = tx.rows(sa.select(endpoints.c.name, endpoints.c.settings).where(endpoints.c.status != "Deleted"))
    tables = {row["name"]: (row["settings"] or {}).get("multi_model") for row in rows}
    return {name: table["memory_mb"] for name, table in tables.items() if table}


def _forkservers(ctx: Context, tx: Tx, forks: set[str]) -> list[dict[str, Any]]:
    """One for the environment of each project, as it was pushed last, and those that servers are forked from."""
    pushed = {row["environment"] for row in tx.rows(sa.select(projects.c.environment))}
    ready = tx.rows(sa.select(environments).where(environments.c.status == "Ready").order_by(environments.c.key))
    return [
        _forkserver(ctx, row, serves)
        for row in ready
        if (serves := _fork_socket(ctx, row) in forks) or row["id"] in pushed
    ]


def _fork_socket(ctx: Context, environment: Row) -> str:
    return str(ctx.settings.run_dir / "fork" / f"fork-{environment['key'][:16]}.sock")


def _forkserver(ctx: Context, row: Row, serves: bool) -> dict[str, Any]:
    path = Path(_fork_socket(ctx, row))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = [row["python"], "-I", str(RUNTIME / "forkserver.py"), "--socket", str(path)]
    if row["preload"]:
        argv += ["--preload", ",".join(row["preload"])]
    argv += ["--idle", str(KEPT_SECONDS if serves else FORKSERVER_IDLE_SECONDS), *(["--serve"] if serves else [])]
    return {"id": path.stem, "argv": argv, "environ": child_environment(), "socket": str(path)}


def server(
    ctx: Context, variant: str, index: int, spec: dict[str, Any], python: str, environment: Row | None = None
) -> dict[str, Any]:
    """The entry of one model server: {"id", "socket", "status", "process"}; its spec file is written here.

    Each start has a name of its own: what an earlier server of the variant said must not be taken for this one. Memory
    and threads are the endpoint's; where its number of servers moves, they are forked from their environment's
    forkserver, and the first starts on demand when there may be none.
    """
    settings = _surroundings(ctx, variant)
    if settings.get("memory_mb"):
        spec = {**spec, "limits": {**(spec.get("limits") or {}), "memory_mb": settings["memory_mb"]}}
    threads = str(settings.get("threads") or 1)
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
        "environ": {**child_environment(), **dict.fromkeys(THREAD_VARIABLES, threads)},
        "cwd": spec.get("code_dir") or spec["model_dir"],
        "socket": path,
        "status": status,
        **demand(settings, index),
    }
    if environment is not None and (settings.get("scaling") or settings.get("multi_model")):
        process["fork"] = _fork_socket(ctx, environment)
    return {"id": name, "socket": path, "status": status, "process": process}


def amend(entry: dict[str, Any], changes: dict[str, Any]) -> None:
    """Change the spec of a model server that is there; it goes by it from its next start on."""
    argv = entry["process"]["argv"]
    path = Path(argv[argv.index("--spec") + 1])
    with suppress(FileNotFoundError):  # it is wanted no longer
        replace_json(path, {**json.loads(path.read_bytes()), **changes})


def _surroundings(ctx: Context, variant: str) -> dict[str, Any]:
    """The settings of a variant's endpoint, with the endpoint's ``name``."""
    with ctx.db.read() as tx:
        row = records.find(tx, "variant", id=variant)
        endpoint = records.find(tx, "endpoint", name=row["endpoint"]) if row else None
    settings = dict((endpoint or {}).get("settings") or {})
    return {**settings, "name": endpoint["name"] if endpoint else None}


def demand(settings: dict[str, Any], index: int) -> dict[str, Any]:
    """What makes the process of a server's entry one on demand; nothing for one that always runs."""
    many, policy = settings.get("multi_model"), scaling.policy_from(settings)
    if many:
        return {"on_demand": True, "idle_seconds": many.get("idle_seconds", 3600), "group": settings["name"]}
    if policy is not None and policy.min == 0 and index == 0:
        return {"on_demand": True, "idle_seconds": policy.idle_seconds}
    return {}


def children(ctx: Context) -> dict[str, dict[str, Any]]:
    """What the supervisor last said of each process, with ``failing`` where it fails whatever it is asked: what is done
    about it. Nothing while there is no supervisor."""
    try:
        state = json.loads((ctx.settings.run_dir / "supervisor.json").read_bytes())
        failing = state.get("failing") or {}
        return {child["id"]: {**child, "failing": failing.get(child["id"])} for child in state["children"]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def server_state(entry: dict[str, Any]) -> dict[str, Any]:
    """What a model server last said of itself; ``state`` is "absent" before it has said anything."""
    try:
        state: dict[str, Any] = json.loads(Path(entry["status"]).read_text())
    except (OSError, ValueError):
        return {"state": "absent"}
    return state
