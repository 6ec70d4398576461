import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from loopline.errors import Conflict
from loopline.store import migrations, records, schema
from loopline.store.db import Db


@pytest.fixture
def empty(empty_url, clock):
    db = Db(empty_url, clock=clock.now, new_id=lambda prefix: f"{prefix}_1")
    yield db
    db.close()


def test_migrations_make_the_schema(empty):
    """When this fails: ``python -m loopline.store.migrations`` (until the first release)."""
    migrations.upgrade(empty)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []


def test_what_migrations_make_is_what_the_metadata_makes(empty, tmp_path, clock):
    """Beyond what Alembic compares: the very DDL, for options such as AUTOINCREMENT and WITHOUT ROWID."""
    if empty.postgres:
        pytest.skip("SQLite keeps its DDL; PostgreSQL is compared by Alembic")
    migrations.upgrade(empty)
    direct = Db(f"sqlite:///{tmp_path / 'direct.db'}", clock=clock.now, new_id=lambda prefix: prefix)
    schema.metadata.create_all(direct.engine)
    found = [tables_of(db) for db in (empty, direct)]
    direct.close()
    del found[0]["alembic_version"]
    assert found[0] == found[1]


def tables_of(db):
    statement = sa.text("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND sql IS NOT NULL")
    with db.engine.connect() as connection:
        return {
            name: sorted(line.strip(" ,\t") for line in sql.replace(f'TABLE "{name}"', f"TABLE {name}").split("\n"))
            for name, sql in connection.execute(statement)
        }


def test_the_head_that_the_quick_path_knows_is_the_last_revision():
    scripts = ScriptDirectory(str(migrations.DIRECTORY))
    assert scripts.get_heads() == [migrations.HEAD]
    assert [revision.revision for revision in scripts.walk_revisions()] == ["0002", "0001"]


def test_an_upgrade_is_remembered_and_may_be_said_again(empty):
    migrations.upgrade(empty)
    migrations.upgrade(empty)
    with empty.read() as tx:
        assert migrations.current(tx) == migrations.HEAD


def test_a_start_on_an_up_to_date_database_does_not_load_alembic(empty_url):
    if not empty_url.startswith("sqlite"):
        pytest.skip("the same code on both")
    program = (
        "import sys, time; from loopline.store.db import Db; from loopline.store import migrations\n"
        "migrations.upgrade(Db(sys.argv[1], clock=time.time, new_id=str)); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", program, empty_url]
    environ = {"PYTHONPATH": str(Path(migrations.__file__).parents[3])}
    said = [subprocess.run(command, env=environ, capture_output=True, check=True).stdout for _ in range(2)]
    assert [text.strip() for text in said] == [b"True", b"False"]


def test_a_database_of_a_newer_program_is_refused_and_left_alone(empty):
    migrations.upgrade(empty)
    with empty.transaction() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(Conflict, match="newer loopline"):
        migrations.upgrade(empty)
    with empty.read() as tx:
        assert migrations.current(tx) == "0999"


def test_an_upgrade_that_fails_leaves_nothing_behind(empty, monkeypatch):
    def stop(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("loopline.store.migrations.append_only.protect", stop)
    with pytest.raises(RuntimeError):
        migrations.upgrade(empty)
    assert sa.inspect(empty.engine).get_table_names() == []
    monkeypatch.undo()
    migrations.upgrade(empty)


@pytest.mark.parametrize("table", ["events", "audit"])
def test_what_happened_can_neither_be_changed_nor_removed(db, table):
    with db.transaction() as tx:
        number = records.note(tx, "model", "mo_1", "looked", actor="ann")
        tx.execute(schema.audit.insert().values(number=number, previous="", digest="d"))
    changed = {"events": "actor = 'eve'", "audit": "digest = 'e'"}[table]
    statements = [f"UPDATE {table} SET {changed}", f"DELETE FROM {table}"]
    for statement in [*statements, *([f"TRUNCATE {table}"] if db.postgres else [])]:
        with pytest.raises(sa.exc.DBAPIError, match="only grows"), db.transaction() as tx:
            tx.execute(sa.text(statement))
    with db.read() as tx:
        assert len(tx.rows(sa.select(schema.metadata.tables[table]))) == 1
