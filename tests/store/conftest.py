"""Each store test runs on SQLite and on a private PostgreSQL, which is skipped visibly where it is not installed."""

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from loopline.store import migrations
from loopline.store.db import Db
from loopline.testing.clock import ManualClock

_numbers = itertools.count()


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    engine = sa.create_engine(url)
    deadline = time.monotonic() + 60
    while True:
        try:
            engine.connect().close()
            break
        except sa.exc.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # between two looks
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server of our own, up to the database's name; its template ``loopline_template`` is migrated."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: /usr/lib/postgresql/*/bin/initdb")
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
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
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options],
            stdout=log,
            stderr=log,
            cwd=folder,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - it makes one system call
            **as_user,
        )
    try:
        address = f"?host={folder}&user=postgres"
        _wait_until_ready(server, f"postgresql+psycopg:///postgres{address}")
        _execute(f"postgresql+psycopg:///postgres{address}", "CREATE DATABASE loopline_template")
        template = make_db(f"postgresql:///loopline_template{address}", ManualClock())
        migrations.upgrade(template)
        template.close()
        yield f"postgresql:///%s{address}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    db = make_db(f"sqlite:///{path}", ManualClock())
    migrations.upgrade(db)
    db.close()
    return path


@pytest.fixture
def clock() -> ManualClock:
    """Starts at the present, because PostgreSQL goes by its own time."""
    return ManualClock(time.time())


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    with _database(request.getfixturevalue("postgres_url"), "template0") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def db(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Db]:
    """A migrated database of this test's own."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "test.db")
        made = make_db(f"sqlite:///{tmp_path / 'test.db'}", clock)
        yield made
        made.close()
        return
    with _database(request.getfixturevalue("postgres_url"), "loopline_template") as url:
        made = make_db(url, clock)
        yield made
        made.close()


@pytest.fixture
def wait(db: Db, clock: ManualClock) -> Callable[[float], None]:
    """Let the time pass that leases and tasks go by."""

    def pass_time(seconds: float) -> None:
        clock.advance(seconds)
        if db.postgres:  # its clock is the server's, so that the times move in place of it
            with db.transaction() as tx:
                tx.execute(
                    sa.text("UPDATE queue SET run_at = run_at - :s, lease_until = lease_until - :s"), {"s": seconds}
                )

    return pass_time


def make_db(url: str, clock: ManualClock) -> Db:
    ids = itertools.count(1)
    return Db(url, clock=clock.now, new_id=lambda prefix: f"{prefix}_{next(ids):06}")


class _database:
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
