"""Triggers that let a log only grow: what happened can be neither rewritten nor taken back, by our own code either."""

from sqlalchemy.engine import Connection

TABLES = ("events", "audit")


def protect(connection: Connection, table: str) -> None:
    """Make the database refuse UPDATE and DELETE (and TRUNCATE, where it exists) on a table."""
    for statement in _postgres(table) if connection.dialect.name == "postgresql" else _sqlite(table):
        connection.exec_driver_sql(statement)


def _sqlite(table: str) -> list[str]:
    return [
        f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} only grows: no {verb}'); END"
        for verb in ("update", "delete")
    ]


def _postgres(table: str) -> list[str]:
    return [
        "CREATE OR REPLACE FUNCTION loopline_only_grows() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '%% only grows: no %%', TG_TABLE_NAME, lower(TG_OP); END $$",
        f"CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION loopline_only_grows()",
    ]
