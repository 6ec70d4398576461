import threading

import pytest
import sqlalchemy as sa

from loopline.store import queue, schema
from loopline.store.db import Prepared


def put(db, name, position=0, **options):
    with db.transaction(**options) as tx:
        tx.upsert(schema.consumers, [{"name": name, "position": position}], ("name",), ("position",))


def names(tx):
    return sorted(tx.execute(sa.select(schema.consumers.c.name)).scalars())


def test_a_read_sees_one_state_however_often_it_looks(db):
    put(db, "a")
    with db.read() as tx:
        assert names(tx) == ["a"]
        put(db, "b", durable=True)
        assert names(tx) == ["a"]
    with db.read() as tx:
        assert names(tx) == ["a", "b"]


def test_nothing_written_in_a_read_is_kept(db):
    try:
        with db.read() as tx:
            tx.execute(schema.consumers.insert().values(name="x", position=0))
    except sa.exc.DBAPIError:
        assert db.postgres  # refuses at once
    put(db, "a")
    with db.read() as tx:
        assert names(tx) == ["a"]


def test_a_transaction_inside_a_transaction_is_refused_at_once(db):
    with db.transaction() as tx:
        with pytest.raises(RuntimeError, match="open already"):
            put(db, "inner")
        tx.execute(schema.consumers.insert().values(name="outer", position=0))
    put(db, "next")
    with db.read() as tx:
        assert names(tx) == ["next", "outer"]


def test_a_transaction_may_begin_when_another_has_been_committed(db):
    with db.transaction() as tx:
        tx.after_commit.append(lambda: put(db, "after"))
    with db.read() as tx:
        assert names(tx) == ["after"]


def test_many_writers_wait_for_one_another_and_none_fails(db):
    failures = []

    def write(name):
        try:
            for number in range(25):
                put(db, f"{name}-{number}", durable=number % 5 == 0)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with db.read() as tx:
        assert len(names(tx)) == 150


def test_json_and_conflicts_behave_alike(db):
    with db.transaction() as tx:
        assert tx.insert_ignore(schema.consumers, {"name": "a", "position": 1})
        assert not tx.insert_ignore(schema.consumers, {"name": "a", "position": 2})
        body = {"text": "ünïcode\u2028", "numbers": [1, 2.5, None, True], "empty": {}}
        tx.execute(schema.snapshots.insert().values(at=1.0, body=body, by="x"))
        tx.upsert(schema.consumers, [], ("name",), ("position",))
    with db.read() as tx:
        assert tx.row(sa.select(schema.consumers)) == {"name": "a", "position": 1}
        assert tx.row(sa.select(schema.snapshots))["body"] == body
        assert tx.row(sa.select(schema.users)) is None
    with pytest.raises((sa.exc.StatementError, ValueError)), db.transaction() as tx:
        tx.execute(schema.snapshots.insert().values(at=1.0, body={"x": float("nan")}, by="x"))


def test_what_is_to_be_done_before_the_commit_is_done_once_and_with_the_rest_or_not_at_all(db):
    told = []
    with db.transaction() as tx:
        for _ in range(3):
            tx.before_commit["fill"] = lambda: told.append("filled")
        assert told == []
    with db.transaction(rehearsal=True) as tx:
        tx.before_commit["fill"] = lambda: told.append("rehearsed")
    assert told == ["filled"]

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), db.transaction() as tx:
        tx.execute(schema.consumers.insert().values(name="lost", position=0))
        tx.before_commit["fill"] = fail
    with db.read() as tx:
        assert names(tx) == []


def test_who_waits_for_tasks_is_told_the_kinds_after_the_commit(db):
    told = []
    db.on_ask.append(lambda kinds: told.append(sorted(kinds)))
    with db.transaction() as tx:
        queue.ask(tx, "b", "1")
        queue.ask(tx, "a", "1")
        queue.ask(tx, "a", "2")
        assert told == []
    with db.transaction() as tx:
        tx.execute(schema.consumers.insert().values(name="x", position=0))
    assert told == [["a", "b"]]


def test_json_comes_back_whatever_python_can_write(db):
    values = {"big": 10**30, "none": None, "nested": [{"a": [1.5, True]}]}
    if not db.postgres:  # which refuses half a pair
        values["half"] = "\ud800"
    with db.transaction() as tx:
        tx.execute(schema.events.insert().values(at=0.0, actor="a", noun="n", record="r", kind="k", data=values))
        assert tx.row(sa.select(schema.events.c.data))["data"] == values


def test_a_prepared_statement_gives_what_the_statement_gives(db):
    prepared = Prepared(
        sa.select(schema.events).where(schema.events.c.noun == sa.bindparam("noun"), schema.events.c.kind == "made")
    )
    with db.transaction() as tx:
        for noun in ("one", "two"):
            number = tx.record_event(
                {"actor": "a", "noun": noun, "record": "r", "kind": "made", "before": None, "after": None}
                | {"reason": None, "data": {"of": noun}}
            )
        found = tx.fetch(prepared, noun="two")
        assert found == tx.rows(sa.select(schema.events).where(schema.events.c.noun == "two"))
        assert found[0]["number"] == number and found[0]["data"] == {"of": "two"}
        assert tx.fetch_one(prepared, noun="three") is None
