import threading
from collections import Counter

import pytest
import sqlalchemy as sa

from loopline.errors import StaleToken
from loopline.store import queue, schema


def ask(db, key="a", run_at=None, kind="k"):
    with db.transaction() as tx:
        queue.ask(tx, kind, key, run_at)


def claim(db, limit=10, kinds=("k",), lease=30.0, owner="me"):
    return queue.claim(db, list(kinds), owner, lease, limit)


def finish(db, task):
    with db.transaction() as tx:
        queue.finish(tx, task)


def rows(db):
    with db.read() as tx:
        return tx.rows(sa.select(schema.queue))


def test_a_task_is_there_once_however_often_it_is_asked_for(db):
    for _ in range(3):
        ask(db)
    (task,) = claim(db)
    assert (task.kind, task.key, task.tries) == ("k", "a", 0)
    assert claim(db) == []
    finish(db, task)
    assert rows(db) == []


def test_the_earlier_time_wins(db, clock, wait):
    now = clock.now()
    ask(db, run_at=now + 100)
    ask(db, run_at=now + 50)
    ask(db, run_at=now + 200)
    assert queue.next_due(db) == pytest.approx(now + 50)
    assert claim(db) == []
    wait(60)
    assert len(claim(db)) == 1


def test_a_task_asked_for_while_it_is_worked_on_runs_once_more(db, clock, wait):
    ask(db)
    (task,) = claim(db)
    ask(db, run_at=clock.now() + 100)
    ask(db, run_at=clock.now() + 40)
    ask(db, run_at=clock.now() + 70)
    assert claim(db) == []
    finish(db, task)
    assert claim(db) == []
    wait(50)
    (again,) = claim(db)
    assert again.token > task.token
    finish(db, again)
    assert rows(db) == []


def test_only_kinds_that_were_named_are_claimed_longest_waiting_first(db, clock):
    now = clock.now()
    for key, ago in (("a", 10), ("b", 30), ("c", 20)):
        ask(db, key, now - ago)
    ask(db, "other", now - 99, kind="other")
    assert [task.key for task in claim(db, limit=2)] == ["b", "c"]
    assert [task.key for task in claim(db, limit=5)] == ["a"]
    assert [task.key for task in claim(db, kinds=("k", "other"))] == ["other"]


def test_a_result_is_recorded_by_the_holder_of_the_token_alone(db, wait):
    ask(db)
    (old,) = claim(db, lease=10)
    wait(11)
    (new,) = claim(db, owner="another")
    assert new.token == old.token + 1
    assert new.tries == old.tries + 1  # whoever let a lease lapse may have died of the task
    for use in (
        lambda: finish(db, old),
        lambda: queue.heartbeat(db, old, 10),
        lambda: queue.fail(db, old, "too late"),
    ):
        with pytest.raises(StaleToken):
            use()
    with db.transaction() as tx:
        queue.hold(tx, new)
        with pytest.raises(StaleToken):
            queue.hold(tx, old)
    finish(db, new)
    with pytest.raises(StaleToken):
        finish(db, new)


def test_what_was_written_with_a_stale_token_is_rolled_back(db, wait):
    ask(db)
    (old,) = claim(db, lease=10)
    wait(11)
    claim(db, owner="another")
    with pytest.raises(StaleToken), db.transaction() as tx:
        tx.execute(schema.consumers.insert().values(name="result", position=1))
        queue.finish(tx, old)
    with db.read() as tx:
        assert tx.rows(sa.select(schema.consumers)) == []


def test_an_old_token_never_holds_for_a_task_that_was_asked_for_anew(db, wait):
    ask(db)
    (old,) = claim(db, lease=10)
    wait(11)
    (new,) = claim(db)
    finish(db, new)
    for key in ("b", "a"):
        ask(db, key)
        (fresh,) = claim(db)
        assert fresh.id != old.id
        with pytest.raises(StaleToken):
            finish(db, old)


def test_a_heartbeat_keeps_the_lease(db, wait):
    ask(db)
    (task,) = claim(db, lease=10)
    for _ in range(3):
        wait(8)
        queue.heartbeat(db, task, 10)
        assert claim(db) == []
    wait(11)
    assert len(claim(db)) == 1


def test_a_failed_task_waits_and_counts(db, wait):
    ask(db)
    (task,) = claim(db)
    queue.fail(db, task, "x" * 5000, 20)
    (row,) = rows(db)
    assert (row["tries"], len(row["error"]), row["owner"]) == (1, 4000, None)
    assert claim(db) == []
    wait(21)
    (task,) = claim(db)
    assert task.tries == 1
    queue.fail(db, task, "again", 0)
    (task,) = claim(db)
    assert task.tries == 2
    ask(db)
    finish(db, task)
    (row,) = rows(db)
    assert (row["tries"], row["error"]) == (0, None)  # the next run begins afresh


def test_the_backoff_doubles_to_five_minutes():
    for tries in range(40):
        full = min(300.0, 2.0**tries)
        assert all(0.8 * full <= queue.backoff_seconds(tries) <= full for _ in range(20))


def test_next_due_is_the_earliest_task_or_lapse(db, clock):
    assert queue.next_due(db) is None
    ask(db, "later", clock.now() + 500)
    assert queue.next_due(db) == pytest.approx(clock.now() + 500)
    assert queue.next_due(db, ["other"]) is None
    ask(db, "now")
    (task,) = claim(db, lease=30)
    assert queue.next_due(db) == pytest.approx(task.lease_until)


def test_workers_side_by_side_take_each_task_once(db):
    with db.transaction() as tx:
        for number in range(200):
            queue.ask(tx, "k", str(number))
    done = Counter()
    failures = []

    def work(name):
        try:
            while tasks := claim(db, limit=3, owner=name):
                for task in tasks:
                    finish(db, task)
                    done[task.key] += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(done) == 200
    assert set(done.values()) == {1}
    assert rows(db) == []
