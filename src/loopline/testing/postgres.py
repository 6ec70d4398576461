"""A private PostgreSQL server for tests: its data in a temporary folder, reached by a Unix socket only."""

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.store import migrations
from loopline.store.db import Db

TEMPLATE = "loopline_template"  # a database with this program's schema, for others to be made from
READY_SECONDS = 60.0
_numbers = itertools.count()


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    engine = sa.create_engine(url)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            engine.connect().close()
            break
        except sa.exc.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # between two looks
    engine.dispose()


@contextmanager
def server() -> Iterator[str | None]:
    """URL of a server of our own with ``%s`` for the database's name; None where PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        yield None
        return
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user: dict[str, Any] = (
        {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    )
    folder = Path(tempfile.mkdtemp(prefix="loopline-pg-"))
    if as_user:
        shutil.chown(folder, user)
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
        **as_user,
    )
    settings = {"fsync": "off", "synchronous_commit": "off", "listen_addresses": "", "unix_socket_directories": folder}
    options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options],
            stdout=log,
            stderr=log,
            cwd=folder,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - it makes one system call
            **as_user,
        )
    try:
        address = f"?host={folder}&user=postgres"
        _wait_until_ready(process, f"postgresql+psycopg:///postgres{address}")
        _execute(f"postgresql+psycopg:///postgres{address}", f"CREATE DATABASE {TEMPLATE}")
        template = Db(f"postgresql:///{TEMPLATE}{address}", clock=time.time, new_id=lambda prefix: prefix)
        migrations.upgrade(template)
        template.close()
        yield f"postgresql:///%s{address}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder)


class Database:
    """A PostgreSQL database made from a template, dropped at the end."""

    def __init__(self, pattern: str, template: str) -> None:
        self._pattern = pattern
        self._template = template
        self._name = f"t{next(_numbers)}"

    def __enter__(self) -> str:
        _execute(self._admin(), f"CREATE DATABASE {self._name} TEMPLATE {self._template}")
        return self._pattern % self._name

    def __exit__(self, *_: object) -> None:
        _execute(self._admin(), f"DROP DATABASE {self._name} WITH (FORCE)")

    def _admin(self) -> str:
        return (self._pattern % "postgres").replace("postgresql:", "postgresql+psycopg:")


def _execute(url: str, statement: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()
