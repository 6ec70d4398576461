import threading
import time

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopline.domain import states
from loopline.errors import Conflict, IllegalMove, NotFound
from loopline.store import records, schema
from loopline.store.db import Db

_EVENTS = sa.select(schema.events).order_by(schema.events.c.number)


def make_run(tx, **values):
    given = {"project": "p", "experiment": "e", "name": "n", "dirty": False, "by": "ann", **values}
    return records.create(tx, "run", actor="ann", **given)


def events_of(db):
    with db.read() as tx:
        return tx.rows(_EVENTS)


def test_a_record_is_there_with_its_event_and_its_first_status(db, clock):
    with db.transaction() as tx:
        made = make_run(tx, parameters={"lr": 0.1})
    with db.read() as tx:
        found = records.get(tx, "run", made["id"])
        assert found == made
        assert records.find(tx, "run", name="n", project="p") == made
        assert records.find(tx, "run", name="other") is None
    assert made["id"].startswith("ru_")
    assert (made["status"], made["created_at"], made["parameters"]) == ("Running", clock.now(), {"lr": 0.1})
    (event,) = events_of(db)
    assert (event["noun"], event["record"], event["kind"], event["actor"]) == ("run", made["id"], "created", "ann")
    assert (event["before"], event["after"], event["at"]) == (None, "Running", clock.now())
    assert event["data"]["parameters"] == {"lr": 0.1}


def test_a_move_changes_status_and_values_together_and_says_why(db):
    with db.transaction() as tx:
        job = records.create(
            tx, "job", actor="x", owner="step", owner_id="st_1", name="n", kind="step", tries=0, max_tries=1,
            backoff_seconds=1.0,
        )  # fmt: skip
        moved = records.move(tx, "job", job["id"], "Running", actor="x", started_at=5.0)
        records.move(tx, "job", job["id"], "Failed", actor="x", reason="out of memory")
        found = records.get(tx, "job", job["id"])
    assert (moved["status"], moved["started_at"]) == ("Running", 5.0)
    assert (found["status"], found["started_at"], found["reason"]) == ("Failed", 5.0, "out of memory")
    last = events_of(db)[-1]
    assert (last["kind"], last["before"], last["after"], last["reason"]) == (
        "moved",
        "Running",
        "Failed",
        "out of memory",
    )


def test_an_illegal_move_changes_nothing_and_names_what_is_legal(db):
    with db.transaction() as tx:
        run = make_run(tx)
        records.move(tx, "run", run["id"], "Succeeded", actor="ann")
        with pytest.raises(IllegalMove, match="nothing: it is final"):
            records.move(tx, "run", run["id"], "Running", actor="ann")
    with db.read() as tx:
        assert records.get(tx, "run", run["id"])["status"] == "Succeeded"
    assert len(events_of(db)) == 2


def test_a_status_changes_by_move_alone(db):
    with db.transaction() as tx:
        run = make_run(tx)
        with pytest.raises(ValueError, match="move"):
            records.set(tx, "run", run["id"], actor="ann", status="Failed")


def test_what_is_not_there_is_not_found(db):
    with db.transaction() as tx:
        for call in (
            lambda: records.get(tx, "run", "ru_x"),
            lambda: records.move(tx, "run", "ru_x", "Failed", actor="a"),
            lambda: records.set(tx, "run", "ru_x", actor="a", name="b"),
            lambda: records.delete(tx, "run", "ru_x", actor="a"),
        ):
            with pytest.raises(NotFound):
                call()
    assert events_of(db) == []


def test_a_second_record_of_the_same_name_is_a_conflict_and_the_transaction_goes_on(db):
    with db.transaction() as tx:
        records.create(tx, "user", actor="x", name="ann", role="admin")
        with pytest.raises(Conflict):
            records.create(tx, "user", actor="x", name="ann", role="viewer")
        records.create(tx, "user", actor="x", name="bob", role="viewer")
    assert [event["data"]["name"] for event in events_of(db)] == ["ann", "bob"]


def test_a_transaction_that_fails_leaves_neither_records_nor_events(db):
    with db.transaction() as tx:
        kept = make_run(tx)
    with pytest.raises(RuntimeError), db.transaction() as tx:
        make_run(tx)
        records.move(tx, "run", kept["id"], "Failed", actor="ann")
        records.delete(tx, "run", kept["id"], actor="ann")
        raise RuntimeError
    with db.read() as tx:
        assert records.get(tx, "run", kept["id"])["status"] == "Running"
        assert len(tx.rows(sa.select(schema.runs))) == 1
    assert [event["number"] for event in events_of(db)] == [1]
    with db.transaction() as tx:
        records.set(tx, "run", kept["id"], actor="ann", name="renamed")
        records.delete(tx, "run", kept["id"], actor="ann", reason="tidy")
    assert [event["kind"] for event in events_of(db)] == ["created", "changed", "deleted"]


def test_secrets_and_large_columns_do_not_stand_in_events(db):
    with db.transaction() as tx:
        records.create(tx, "key", actor="x", user="ann", role="admin", sha256="f" * 64, created_by="x")
    assert "sha256" not in events_of(db)[0]["data"]
    assert "f" * 64 not in str(events_of(db))


def test_listeners_are_told_after_a_commit_that_wrote_an_event_only(db):
    told = []
    db.on_event.append(lambda: told.append(len(events_of(db))))
    with db.transaction() as tx:
        tx.execute(schema.consumers.insert().values(name="c", position=0))
    with pytest.raises(RuntimeError), db.transaction() as tx:
        make_run(tx)
        raise RuntimeError
    assert told == []
    with db.transaction() as tx:
        make_run(tx)
        tx.after_commit.append(lambda: told.append("after"))
    assert told == ["after", 1]


def test_of_two_moves_at_the_same_moment_one_wins(db):
    for _ in range(10):
        with db.transaction() as tx:
            run = make_run(tx)
        barrier = threading.Barrier(2)
        outcomes = []

        def move(to, run=run, barrier=barrier, outcomes=outcomes):
            barrier.wait()
            try:
                with db.transaction() as tx:
                    records.move(tx, "run", run["id"], to, actor=to)
                outcomes.append(to)
            except (Conflict, IllegalMove):
                outcomes.append("lost")

        threads = [threading.Thread(target=move, args=(to,)) for to in ("Succeeded", "Failed")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with db.read() as tx:
            status = records.get(tx, "run", run["id"])["status"]
        assert sorted(outcomes) == sorted([status, "lost"])


def test_a_move_against_a_status_that_changed_meanwhile_is_a_conflict(db, monkeypatch):
    with db.transaction() as tx:
        run = make_run(tx)
        stale = dict(run)
        records.move(tx, "run", run["id"], "Failed", actor="first")
        monkeypatch.setattr(records, "get", lambda *_: dict(stale))
        with pytest.raises(Conflict, match="at the same moment"):
            records.move(tx, "run", run["id"], "Succeeded", actor="second")


def test_readers_of_events_never_skip_one_while_eight_writers_write(db):
    """Numbers become visible in their order: a reader that has seen n will never meet a number below it later."""
    stop = threading.Event()
    failures = []

    def write(name):
        try:
            for count in range(25):
                with db.transaction() as tx:
                    for _ in range(1 + count % 3):
                        records.note(tx, "model", f"mo_{name}", "looked", actor="w")
        except Exception as error:
            failures.append(error)

    seen = []

    def follow():
        statement = sa.select(schema.events.c.number).order_by(schema.events.c.number)
        while True:
            last_look = stop.is_set()
            position = seen[-1] if seen else 0
            with db.read() as tx:
                seen.extend(tx.execute(statement.where(schema.events.c.number > position)).scalars())
            if last_look:
                return

    writers = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    reader = threading.Thread(target=follow)
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert failures == []
    with db.read() as tx:
        written = list(tx.execute(sa.select(schema.events.c.number).order_by(schema.events.c.number)).scalars())
    assert len(written) == 8 * sum(1 + count % 3 for count in range(25))
    assert seen == written


def test_on_postgresql_a_later_event_waits_for_the_earlier_transaction(db):
    if not db.postgres:
        pytest.skip("SQLite has one writer at a time")
    order = []
    holding, release = threading.Event(), threading.Event()

    def first():
        with db.transaction() as tx:
            order.append(records.note(tx, "model", "a", "looked", actor="w"))
            holding.set()
            release.wait(60)

    def second():
        with db.transaction() as tx:
            order.append(records.note(tx, "model", "b", "looked", actor="w"))

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert holding.wait(60)
    two.start()
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    deadline = time.monotonic() + 60
    while True:
        with db.read() as tx:
            if tx.execute(waiting).scalar_one() == 1:
                break
        assert time.monotonic() < deadline
    assert len(order) == 1
    release.set()
    one.join()
    two.join()
    assert order == sorted(order)
    assert len(order) == 2


# -- the table of moves -----------------------------------------------------------------------------------------------


def test_every_noun_with_a_status_has_moves_and_the_other_way_round():
    with_status = {noun for noun, table in schema.NOUNS.items() if "status" in table.c}
    assert with_status == set(states.MOVES)
    assert set(schema.NOUNS) == set(records._PREFIXES)
    assert len(set(records._PREFIXES.values())) == len(records._PREFIXES)


@pytest.mark.parametrize("noun", sorted(states.MOVES))
def test_moves_name_every_status_and_reach_each_from_the_first(noun):
    moves = states.MOVES[noun]
    assert set(moves) == set(states.STATUSES[noun])
    reached, ahead = set(), [next(iter(moves))]
    while ahead:
        status = ahead.pop()
        if status not in reached:
            reached.add(status)
            ahead += moves[status]
    assert reached == set(moves)
    assert all(len(str(status)) <= 32 for status in moves)
    final = {status for status, following in moves.items() if not following}
    if noun in states.TERMINAL:
        assert final <= states.TERMINAL[noun]


_VALUE_OF_TYPE = {str: "x", int: 1, float: 1.0, bool: False}


def _minimal(table, number):
    """A value for each column that must have one; unique ones differ by ``number``."""
    values = {}
    for column in table.c:
        if not column.nullable and column.name not in {"status", "created_at"}:
            kind = column.type.python_type
            values[column.name] = f"{column.name}{number}"[:32] if kind is str else _VALUE_OF_TYPE[kind]
            if kind is int and column.name in {"number", "version"}:
                values[column.name] = number
    return values


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_walk_follows_the_table_and_every_step_of_it_is_an_event(db: Db, data):
    noun = data.draw(st.sampled_from(sorted(states.MOVES)))
    wanted = data.draw(st.lists(st.sampled_from(sorted(states.STATUSES[noun])), max_size=8))
    number = data.draw(st.integers(1, 2**31 - 1))
    with db.transaction() as tx:
        before = tx.execute(sa.select(sa.func.max(schema.events.c.number))).scalar_one() or 0
        try:
            values = {**_minimal(schema.NOUNS[noun], number), "id": tx.new_id(noun[:8])}
            row = records.create(tx, noun, actor="walker", **values)
        except Conflict:
            return  # the number was drawn before
        status, walked = row["status"], []
        for to in wanted:
            if to in states.MOVES[noun][states.STATUSES[noun](status)]:
                assert records.move(tx, noun, row["id"], to, actor="walker")["status"] == to
                walked.append((status, str(to)))
                status = str(to)
            else:
                with pytest.raises(IllegalMove):
                    records.move(tx, noun, row["id"], to, actor="walker")
        assert records.get(tx, noun, row["id"])["status"] == status
        moved = tx.rows(_EVENTS.where(schema.events.c.number > before, schema.events.c.kind == "moved"))
        assert [(event["before"], event["after"]) for event in moved] == walked
