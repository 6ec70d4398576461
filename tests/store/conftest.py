"""Each store test runs on SQLite and on a private PostgreSQL, which is skipped visibly where it is not installed."""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from loopline.store import migrations
from loopline.store.db import Db
from loopline.testing import postgres
from loopline.testing.clock import ManualClock


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
    with postgres.Database(request.getfixturevalue("postgres_url"), "template0") as url:
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
    with postgres.Database(request.getfixturevalue("postgres_url"), postgres.TEMPLATE) as url:
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
