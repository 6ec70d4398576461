"""What this machine gives loopline, and what is missing; and what fails in scripts written for SageMaker."""

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from loopline.cli.session import Session, clean, options
from loopline.errors import LooplineError

_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
MIN_FREE_MB = 2048


@click.command()
@click.argument("scripts", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@options
def doctor(session: Session, scripts: tuple[Path, ...]) -> int:
    """What this machine lacks, or what fails in scripts written for SageMaker, which are not run; exits 1 for any."""
    if scripts:
        return _scripts(session, scripts)
    from loopline import config

    settings = config.load()
    found = [_python(), _program("git", "pushes need it: apt-get install git"), _uv(), _landlock()]
    found += [_disk(settings.dir), _sockets(settings), _server(session)]
    session.table({"items": found, "next": None}, (("", "ok"), ("WHAT", "what"), ("FOUND", "found"), ("CURE", "cure")))
    return int(any(not row["ok"] and row["needed"] for row in found))


def _scripts(session: Session, scripts: tuple[Path, ...]) -> int:
    """The mistakes of scripts that no server can mend, each with the line to write."""
    from loopline.domain import clientcode

    found = [
        {"file": str(path), **mistake._asdict()}
        for path in scripts
        for mistake in clientcode.find(path.read_text(encoding="utf-8", errors="replace"))
    ]
    if session.as_json:
        session.json({"items": found, "next": None})
    else:
        for each in found:
            click.echo(clean(f"{each['file']}:{each['line']}: {each['message']}"))
            click.echo(clean(f"    write: {each['fix']}"))
        session.note(f"{len(found)} found in {len(scripts)} script{'s' if len(scripts) > 1 else ''}")
    return int(bool(found))


def _row(what: str, ok: bool, found: str, cure: str = "", *, needed: bool = True) -> dict[str, Any]:
    return {"what": what, "ok": ok, "needed": needed, "found": found, "cure": "" if ok else cure}


def _python() -> dict[str, Any]:
    return _row(
        "Python 3.11 or newer", sys.version_info >= (3, 11), platform.python_version(), "install a newer Python"
    )


def _program(name: str, cure: str) -> dict[str, Any]:
    path = shutil.which(name)
    return _row(name, path is not None, path or "not on PATH", cure)


def _uv() -> dict[str, Any]:
    beside = Path(sys.executable).with_name("uv")
    path = str(beside) if beside.exists() else shutil.which("uv")
    return _row("uv (builds environments)", path is not None, path or "missing", "reinstall loopline: uv comes with it")


def _landlock() -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version > 0:
        return _row("Landlock (jobs see their own files only)", True, f"version {version}", needed=False)
    cure = "jobs are limited by resources and user only; a kernel from 5.13 with Landlock adds files"
    return _row("Landlock (jobs see their own files only)", False, "not in this kernel", cure, needed=False)


def _disk(folder: Path) -> dict[str, Any]:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free // (1 << 20)
    return _row(
        f"{MIN_FREE_MB} MB free in {there}", free >= MIN_FREE_MB, f"{free} MB", "free some, or use --dir elsewhere"
    )


def _sockets(settings: Any) -> dict[str, Any]:
    folder = settings.run_dir.parent
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return _row("a place for sockets", os.access(there, os.W_OK), str(settings.run_dir), f"{there} cannot be written")


def _server(session: Session) -> dict[str, Any]:
    try:
        health = session.client.get("health")
    except LooplineError as error:
        return _row("a server", False, error.message, "start it: loopline up", needed=False)
    return _row("a server", True, f"{session.client.url}, loopline {health['version']}", needed=False)
