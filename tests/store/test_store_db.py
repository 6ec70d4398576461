import threading

import pytest
import sqlalchemy as sa

from loopline.store import schema


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
