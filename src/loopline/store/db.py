"""One database, two kinds: everything in which SQLite and PostgreSQL differ stands in this file.

SQLite runs in WAL mode with one writer at a time (a lock of this process in front of BEGIN IMMEDIATE, so that waiting
is fair and "database is locked" is not met); ``durable`` transactions sync to disk before they return, the others
survive a killed process but may lose their last moments with the power.
"""

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from loopline.errors import Unavailable
from loopline.store.schema import events

Row = dict[str, Any]

_EVENT_LOCK = 0x6C6F6F70  # any constant of our own: numbers are handed out under it


class Prepared:
    """A statement that is built once and run often, with its parameters given by name.

    On SQLite it runs on the driver's own connection: what SQLAlchemy does around each execution costs several times
    what the statement does. Its types still convert what goes in and what comes out. Parameters that are lists
    (``IN``) are not for it.
    """

    def __init__(self, statement: Any) -> None:
        self.statement = statement
        self._compiled: _Compiled | None = None

    def compiled(self, dialect: Any) -> "_Compiled":
        """The text for SQLite's driver."""
        if self._compiled is None:
            self._compiled = _Compiled(self.statement, dialect)
        return self._compiled


class _Compiled:
    """A statement as text, the order of its parameters, and what converts parameters and columns."""

    def __init__(self, statement: Any, dialect: Any) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        fixed = compiled.params
        self.parameters = [
            (compiled.bind_names[bind], bind.type.dialect_impl(dialect).bind_processor(dialect), fixed.get(name))
            for name in compiled.positiontup or ()
            for bind in (compiled.binds[name],)
        ]
        columns = statement.exported_columns  # of a change: what it returns
        self.names = [column.key for column in columns]
        processors = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self.converted = [(name, f) for name, f in zip(self.names, processors, strict=True) if f is not None]

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """The parameters in order."""
        found = []
        for name, process, fixed in self.parameters:
            value = given.get(name, fixed)
            found.append(value if process is None else process(value))
        return found

    def row(self, values: tuple[Any, ...]) -> Row:
        """What the driver gave, by name."""
        row = dict(zip(self.names, values, strict=True))
        for name, convert in self.converted:
            row[name] = convert(row[name])
        return row


@dataclass
class Tx:
    """An open write transaction. ``now`` is its one time; ``after_commit`` runs when it has been committed.

    ``before_commit``: by name, what is done once at the end of the transaction, in it, however often it was asked for.
    """

    connection: Connection
    now: float
    new_id: Callable[[str], str]
    postgres: bool
    after_commit: list[Callable[[], object]] = field(default_factory=list)
    before_commit: dict[str, Callable[[], object]] = field(default_factory=dict)
    nouns: set[str] = field(default_factory=set)  # of the events that were written
    asked: set[str] = field(default_factory=set)  # the kinds of the tasks that were asked for

    def fetch(self, prepared: Prepared, **values: Any) -> list[Row]:
        """All rows of a prepared statement."""
        if self.postgres:
            return [dict(row) for row in self.connection.execute(prepared.statement, values).mappings()]
        compiled = prepared.compiled(self.connection.dialect)
        return [compiled.row(row) for row in self._run(compiled, values)]

    def fetch_one(self, prepared: Prepared, **values: Any) -> Row | None:
        """The first row of a prepared statement, or None."""
        if self.postgres:
            found = self.connection.execute(prepared.statement, values).mappings().first()
            return None if found is None else dict(found)
        compiled = prepared.compiled(self.connection.dialect)
        row = self._run(compiled, values).fetchone()
        return None if row is None else compiled.row(row)

    def change(self, prepared: Prepared, **values: Any) -> int:
        """Run a prepared statement that changes rows; says how many."""
        if self.postgres:
            return self.connection.execute(prepared.statement, values).rowcount
        return self._run(prepared.compiled(self.connection.dialect), values).rowcount

    def _run(self, compiled: _Compiled, values: Mapping[str, Any]) -> sqlite3.Cursor:
        driver: Any = self.connection.connection.driver_connection
        try:
            found: sqlite3.Cursor = driver.execute(compiled.text, compiled.values(values))
        except sqlite3.IntegrityError as error:
            raise sa.exc.IntegrityError(compiled.text, None, error) from error
        return found

    def write_many(self, text: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement of the driver's own, written with ``?`` for its parameters, once for each row."""
        if self.postgres:
            self.connection.exec_driver_sql(text.replace("?", "%s"), [tuple(row) for row in rows])
        else:
            driver: Any = self.connection.connection.driver_connection
            driver.executemany(text, rows)

    def _run_many(self, compiled: _Compiled, rows: Iterable[Mapping[str, Any]]) -> None:
        driver: Any = self.connection.connection.driver_connection
        driver.executemany(compiled.text, [compiled.values(row) for row in rows])

    def execute(self, statement: sa.Executable, values: Any = None) -> sa.CursorResult[Any]:
        """Run a statement; ``values`` may be one mapping or a list of them."""
        return self.connection.execute(statement, values)

    def rows(self, statement: sa.Select[Any]) -> list[Row]:
        """All rows as dictionaries."""
        found = self.connection.execute(statement)
        names = tuple(found.keys())
        return [dict(zip(names, row, strict=True)) for row in found]

    def row(self, statement: sa.Select[Any]) -> Row | None:
        """The first row, or None."""
        found = self.connection.execute(statement).mappings().first()
        return None if found is None else dict(found)

    def insert_ignore(self, table: sa.Table, values: Mapping[str, Any]) -> bool:
        """Insert unless a row with the same key exists; says whether it was inserted."""
        insert = postgresql.insert if self.postgres else sqlite.insert
        statement = insert(table).values(**values).on_conflict_do_nothing()
        return self.execute(statement.returning(sa.literal(1))).first() is not None

    def upsert(self, table: sa.Table, rows: list[Row], key: tuple[str, ...], change: tuple[str, ...]) -> None:
        """Insert rows; where ``key`` exists, take ``change`` from the new row."""
        if not rows:
            return
        prepared = _upserting(self.postgres, table, tuple(rows[0]), key, change)
        if self.postgres:
            self.execute(prepared.statement, rows)
        else:
            self._run_many(prepared.compiled(self.connection.dialect), rows)

    def record_event(self, values: Mapping[str, Any]) -> int:
        """Append to the event log and give the number; on PostgreSQL in commit order, so that no reader skips one."""
        if self.postgres and not self.nouns:
            self.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _EVENT_LOCK})
        self.nouns.add(str(values["noun"]))
        written = self.fetch_one(_WRITE_EVENT, at=self.now, **values)
        assert written is not None
        return int(written["number"])


@cache
def _upserting(
    postgres: bool, table: sa.Table, names: tuple[str, ...], key: tuple[str, ...], change: tuple[str, ...]
) -> Prepared:
    statement: Any = (postgresql.insert if postgres else sqlite.insert)(table)
    statement = statement.values({name: sa.bindparam(name, type_=table.c[name].type) for name in names})
    excluded = {name: statement.excluded[name] for name in change}
    return Prepared(statement.on_conflict_do_update(index_elements=list(key), set_=excluded))


_EVENT_COLUMNS = {c.name: sa.bindparam(c.name, type_=c.type) for c in events.c if c is not events.c.number}
_WRITE_EVENT = Prepared(events.insert().values(_EVENT_COLUMNS).returning(events.c.number))


@contextmanager
def _disk_trouble_told() -> Iterator[None]:
    """SQLite's own words for a disk that is full or failing, as ``Unavailable``: nothing was written."""
    try:
        yield
    except (sa.exc.OperationalError, sqlite3.OperationalError) as error:
        said = str(getattr(error, "orig", None) or error)
        if said not in ("database or disk is full", "disk I/O error"):
            raise
        raise Unavailable(f"nothing was changed, the database cannot be written: {said}; free some space") from error


class Db:
    """The database of one installation; safe for use by several threads of one process."""

    def __init__(self, url: str, *, clock: Callable[[], float], new_id: Callable[[str], str]) -> None:
        self.postgres = url.startswith("postgresql")
        self._clock = clock
        self._new_id = new_id
        self._writer = threading.Lock()
        self._held = threading.local()
        self.engine = _make_engine(url, postgres=self.postgres)
        self.changes: Counter[str] = Counter()  # commits of this process by the nouns they changed; writers count
        self.on_event: list[Callable[[], None]] = []  # told after each commit that wrote an event
        self.on_ask: list[Callable[[Set[str]], None]] = []  # told the kinds after each commit that asked for tasks

    @contextmanager
    def transaction(self, *, durable: bool = False, rehearsal: bool = False) -> Iterator[Tx]:
        """One write transaction: committed when the block ends well, rolled back when it raises, or in a rehearsal."""
        with self._lock(), _disk_trouble_told(), self.engine.connect() as connection:
            if not self.postgres:
                _set_synchronous(connection, "FULL" if durable else "NORMAL")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            tx = Tx(connection, self._clock(), self._new_id, self.postgres)
            try:
                yield tx
                for last in () if rehearsal else tx.before_commit.values():
                    last()
            except BaseException:
                connection.rollback()
                raise
            if rehearsal:
                connection.rollback()
                return
            connection.commit()
            self.changes.update(tx.nouns)
        self._tell(tx)

    def _tell(self, tx: Tx) -> None:
        """What follows a commit."""
        for callback in tx.after_commit:
            callback()
        if tx.nouns:
            for listener in self.on_event:
                listener()
        if tx.asked:
            for told in self.on_ask:
                told(tx.asked)

    @contextmanager
    def read(self) -> Iterator[Tx]:
        """A consistent view; nothing that is written in it is kept."""
        with self.engine.connect() as connection:
            if self.postgres:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            else:
                connection.exec_driver_sql("BEGIN")
            try:
                yield Tx(connection, self._clock(), self._new_id, self.postgres)
            finally:
                connection.rollback()

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Take the time of transactions from another clock: for tests that move it."""
        self._clock = clock

    def database_time(self, tx: Tx) -> float:
        """The time that leases are judged by: the server's on PostgreSQL, this host's on SQLite (one host)."""
        if self.postgres:
            return float(tx.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        return self._clock()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if getattr(self._held, "transaction", False):
            raise RuntimeError("this thread has a transaction open already; pass its Tx on in place of opening another")
        with nullcontext() if self.postgres else self._writer:
            self._held.transaction = True
            try:
                yield
            finally:
                self._held.transaction = False


def _set_synchronous(connection: Connection, mode: str) -> None:
    if connection.info.get("synchronous") != mode:  # a connection keeps it
        connection.exec_driver_sql(f"PRAGMA synchronous={mode}")
        connection.info["synchronous"] = mode


def _decode(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except ValueError:  # what only Python's reader takes: half a surrogate pair, a number out of range
        return json.loads(text)


def _make_engine(url: str, *, postgres: bool) -> Engine:
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    conversion: dict[str, Any] = {"json_serializer": encode, "json_deserializer": _decode}
    if postgres:
        driver_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        return sa.create_engine(driver_url, pool_size=8, pool_pre_ping=True, **conversion)
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, pool_size=8, **conversion)

    @sa.event.listens_for(engine, "connect")
    def _configure(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # we say BEGIN ourselves
        cursor = raw.cursor()
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "cache_size=-8192", "mmap_size=134217728"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
