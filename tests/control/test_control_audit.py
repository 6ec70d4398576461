"""The audit chain: whatever is changed in the log afterwards is seen, and said where."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from loopline.control import access, audit, events
from loopline.errors import Conflict, InvalidInput
from loopline.testing.world import World

USERS = 9  # more than three batches of the size below


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(audit, "BATCH", 3)
    opened = World(tmp_path / "data")
    for number in range(USERS):
        access.create_user(opened.ctx, opened.actor, name=f"person-{number}", role="viewer")
    chain(opened)
    yield opened
    opened.close()


def chain(world: World) -> int:
    return events.consume(world.ctx, "audit", audit.chain)


def tamper(world: World, statement: str) -> None:
    """Do what nobody is allowed to, as somebody who has the file could."""
    with world.ctx.db.transaction() as tx:
        for table in ("events", "audit"):
            for verb in ("update", "delete"):
                tx.execute(sa.text(f"DROP TRIGGER IF EXISTS {table}_no_{verb}"))
        tx.execute(sa.text(statement))


def problem(world: World, **given: str) -> tuple[int, str]:
    found = audit.verify(world.ctx, world.actor, **given)
    assert not found["valid"]
    return found["problem"]["number"], found["problem"]["kind"]


def test_an_untouched_chain_holds(world: World) -> None:
    found = audit.verify(world.ctx, world.actor)
    assert found["valid"] and found["problem"] is None
    assert found["events"] == USERS and found["waiting"] == 0
    assert found["head"] == {key: audit.head(world.ctx, world.actor)[key] for key in ("number", "digest", "anchor")}


def test_an_empty_chain_holds(tmp_path: Path) -> None:
    empty = World(tmp_path / "data")
    assert audit.verify(empty.ctx, empty.actor)["valid"]
    assert audit.head(empty.ctx, empty.actor)["number"] == 0
    empty.close()


def test_events_that_are_not_chained_yet_are_counted(world: World) -> None:
    access.create_user(world.ctx, world.actor, name="late", role="viewer")
    assert audit.verify(world.ctx, world.actor)["waiting"] == 1
    chain(world)
    found = audit.verify(world.ctx, world.actor)
    assert (found["events"], found["waiting"]) == (USERS + 1, 0)


@pytest.mark.parametrize("number", [1, 3, 4, 5, USERS])
@pytest.mark.parametrize(
    "change", ["actor = 'nobody'", "at = at + 0.001", "data = '{}'", "reason = 'because'", "record = 'us_other'"]
)
def test_an_edited_event_is_found(world: World, number: int, change: str) -> None:
    tamper(world, f"UPDATE events SET {change} WHERE number = {number}")
    assert problem(world) == (number, "edited")


@pytest.mark.parametrize("number", [1, 4, USERS])
def test_a_deleted_event_is_found(world: World, number: int) -> None:
    tamper(world, f"DELETE FROM events WHERE number = {number}")
    assert problem(world) == (number, "deleted")


def test_an_event_deleted_with_its_link_is_found(world: World) -> None:
    tamper(world, "DELETE FROM events WHERE number = 4")
    tamper(world, "DELETE FROM audit WHERE number = 4")
    assert problem(world) == (5, "relinked")


def test_a_tail_that_was_cut_off_is_found(world: World) -> None:
    tamper(world, f"DELETE FROM events WHERE number >= {USERS - 1}")
    tamper(world, f"DELETE FROM audit WHERE number >= {USERS - 1}")
    assert problem(world) == (USERS - 1, "deleted")


@pytest.mark.parametrize("number", [-5, 0])
def test_an_event_put_in_before_the_first_is_found(world: World, number: int) -> None:
    tamper(
        world,
        f"INSERT INTO events SELECT {number}, at, actor, noun, record, kind, before, after, reason, data "
        "FROM events WHERE number = 2",
    )
    assert problem(world) == (number, "inserted")


def test_an_event_put_in_where_a_number_was_free_is_found(world: World) -> None:
    tamper(world, "UPDATE events SET number = number + 100 WHERE number = 9")
    tamper(world, "UPDATE audit SET number = number + 100 WHERE number = 9")
    tamper(world, "UPDATE consumers SET position = 109 WHERE name = 'audit'")
    tamper(
        world,
        "INSERT INTO events SELECT 50, at, actor, noun, record, kind, before, after, reason, data "
        "FROM events WHERE number = 2",
    )
    assert problem(world) == (50, "inserted")


def test_a_changed_link_is_found(world: World) -> None:
    tamper(world, f"UPDATE audit SET digest = '{'0' * 64}' WHERE number = 4")
    assert problem(world) == (4, "edited")


def test_swapped_events_are_found(world: World) -> None:
    tamper(world, "UPDATE events SET number = -1 WHERE number = 4")
    tamper(world, "UPDATE events SET number = 4 WHERE number = 5")
    tamper(world, "UPDATE events SET number = 5 WHERE number = -1")
    assert problem(world) == (4, "edited")


def test_a_chain_computed_anew_after_a_change_is_found_with_an_anchor(world: World) -> None:
    anchor = audit.head(world.ctx, world.actor)["anchor"]
    access.create_user(world.ctx, world.actor, name="late", role="viewer")
    chain(world)
    assert audit.verify(world.ctx, world.actor, anchor=anchor)["valid"]
    tamper(world, "UPDATE events SET actor = 'nobody' WHERE number = 2")
    tamper(world, "DELETE FROM audit")
    tamper(world, "DELETE FROM consumers WHERE name = 'audit'")
    world.ctx.cache.clear()  # a new process
    chain(world)
    assert audit.verify(world.ctx, world.actor)["valid"]  # the chain alone cannot tell
    assert problem(world, anchor=anchor) == (USERS, "relinked")


def test_an_anchor_beyond_the_chain_s_end_is_found(world: World) -> None:
    anchor = audit.head(world.ctx, world.actor)["anchor"]
    tamper(world, f"DELETE FROM events WHERE number = {USERS}")
    tamper(world, f"DELETE FROM audit WHERE number = {USERS}")
    tamper(world, f"UPDATE consumers SET position = {USERS - 1} WHERE name = 'audit'")
    assert problem(world, anchor=anchor) == (USERS, "deleted")


@pytest.mark.parametrize("anchor", ["", "5", "x:" + "0" * 64, "5:abc", "\u0665:" + "0" * 64])
def test_what_is_no_anchor_is_refused(world: World, anchor: str) -> None:
    with pytest.raises(InvalidInput, match="is not an anchor"):
        audit.verify(world.ctx, world.actor, anchor=anchor)


def test_an_event_given_twice_is_chained_once_and_a_gap_is_never_closed(world: World) -> None:
    log = events.list_(world.ctx, world.actor, after=0)["items"]
    with world.ctx.db.transaction() as tx:
        audit.chain(world.ctx, tx, log[3])
    assert audit.verify(world.ctx, world.actor)["valid"]
    with pytest.raises(Conflict, match="gone past"), world.ctx.db.transaction() as tx:
        audit.chain(world.ctx, tx, {**log[3], "number": 0})


def test_text_and_numbers_of_every_kind_come_back_from_the_database_as_they_were_chained(world: World) -> None:
    from loopline.store import records

    odd = {
        "t": 'ü \u2028 \U0001f600 "\\',
        "n": [1e-7, 1.0, 12345678901234567890, -0.0, True, None],
        "d": {"b": 1, "a": 2},
    }
    with world.ctx.db.transaction() as tx:
        records.note(tx, "user", "us_1", "odd", actor="a", **odd)
    chain(world)
    assert audit.verify(world.ctx, world.actor)["valid"]
