"""The way from one schema to the next. A revision, once released, never changes; there is no way down but a backup.

Revisions are numbered 0001, 0002, ... The newest is written anew from ``schema`` by ``python -m
loopline.store.migrations`` until it is released.
"""

from pathlib import Path

import sqlalchemy as sa

from loopline.errors import Conflict
from loopline.store.db import Db, Tx

HEAD = "0002"
DIRECTORY = Path(__file__).parent

_MIGRATION_LOCK = 0x6D696772  # any constant of our own: on PostgreSQL one start at a time migrates
_version = sa.table("alembic_version", sa.column("version_num"))


def upgrade(db: Db) -> None:
    """Bring the database to this program's schema, in one transaction.

    Raises ``Conflict`` when a newer loopline wrote it. A database that is up to date costs one query and no import of
    Alembic.
    """
    with db.read() as tx:
        if current(tx) == HEAD:
            return
    with db.transaction(durable=True) as tx:
        if tx.postgres:
            tx.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        found = current(tx)
        if found == HEAD:
            return
        if found is not None and found > HEAD:
            raise Conflict(
                f"the database has schema {found}, written by a newer loopline; this one knows up to {HEAD}. "
                "Install the newer version, or restore the backup that was made before it"
            )
        _run_alembic(tx)


def current(tx: Tx) -> str | None:
    """The revision of the database; None for an empty one."""
    if not sa.inspect(tx.connection).has_table(_version.name):
        return None
    found: str | None = tx.execute(sa.select(_version.c.version_num)).scalar_one_or_none()
    return found


def _run_alembic(tx: Tx) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(DIRECTORY).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = tx.connection
    command.upgrade(config, "head")
