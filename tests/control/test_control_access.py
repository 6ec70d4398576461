"""Keys: what was revoked or changed is so for the next request, however often the key was used before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.control import access, access_keys
from loopline.domain.access import Actor
from loopline.errors import Forbidden, InvalidInput, Unauthenticated
from loopline.testing.clock import ManualClock
from loopline.testing.fleet import Fleet
from loopline.testing.world import World


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def world(tmp_path: Path, clock: ManualClock) -> Iterator[World]:
    opened = World(tmp_path / "data", clock=clock)
    access.create_user(opened.ctx, opened.actor, name="ann", role="editor")
    yield opened
    opened.close()


def make_key(world: World) -> dict[str, str]:
    made: dict[str, str] = access.create_key(world.ctx, world.actor, user="ann", name="laptop", expires_days=1)
    return made


def test_a_key_that_was_used_needs_no_database_until_a_key_changes(world: World) -> None:
    made = make_key(world)
    assert not access.is_at_hand(world.ctx, made["key"])
    assert access.authenticate(world.ctx, made["key"]).name == "ann"
    assert access.is_at_hand(world.ctx, made["key"])
    make_key(world)
    assert not access.is_at_hand(world.ctx, made["key"])
    assert access.authenticate(world.ctx, made["key"]).name == "ann"


def test_a_revoked_key_is_refused_at_once(world: World) -> None:
    made = make_key(world)
    access.authenticate(world.ctx, made["key"])
    access.revoke_key(world.ctx, world.actor, key=made["id"])
    with pytest.raises(Unauthenticated):
        access.authenticate(world.ctx, made["key"])


def test_the_keys_of_a_removed_user_are_refused_at_once(world: World) -> None:
    made = make_key(world)
    access.authenticate(world.ctx, made["key"])
    access.delete_user(world.ctx, world.actor, name="ann")
    with pytest.raises(Unauthenticated):
        access.authenticate(world.ctx, made["key"])


def test_a_key_expires_although_it_is_at_hand(world: World, clock: ManualClock) -> None:
    made = make_key(world)
    access.authenticate(world.ctx, made["key"])
    clock.advance(2 * 86400)
    assert access.is_at_hand(world.ctx, made["key"])
    with pytest.raises(Unauthenticated):
        access.authenticate(world.ctx, made["key"])


def test_another_secret_for_a_key_at_hand_is_refused(world: World) -> None:
    made = make_key(world)
    access.authenticate(world.ctx, made["key"])
    wrong = made["key"][:-1] + ("A" if made["key"][-1] != "A" else "B")
    with pytest.raises(Unauthenticated):
        access.authenticate(world.ctx, wrong)


def test_the_limits_of_a_key_reach_the_gateways_and_can_be_changed(world: World) -> None:
    made = access.create_key(
        world.ctx, world.actor, user="ann", role="invoker", endpoints=["e"], rate=10, burst=20, quota="10000/day"
    )
    published = Fleet(world.ctx).snapshot()["keys"][made["id"]]
    assert {name: published[name] for name in ("rate", "burst", "quota", "quota_seconds")} == {
        "rate": 10,
        "burst": 20,
        "quota": 10000,
        "quota_seconds": 86400,
    }
    changed = access.limit_key(world.ctx, world.actor, key=made["id"], quota="5/minute")
    assert (changed["rate"], changed["quota"], changed["quota_seconds"]) == (None, 5, 60)
    published = Fleet(world.ctx).snapshot()["keys"][made["id"]]
    assert "rate" not in published and published["quota"] == 5


@pytest.mark.parametrize(
    "limits",
    [
        {"rate": 0},
        {"rate": -1},
        {"burst": 5},
        {"rate": 1, "burst": 0.5},
        {"quota": "10"},
        {"quota": "0/day"},
        {"quota": "10/fortnight"},
        {"rate": float("inf")},
    ],
    ids=str,
)
def test_limits_that_mean_nothing_are_refused(world: World, limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        access.create_key(world.ctx, world.actor, user="ann", role="viewer", **limits)


def test_a_person_does_not_lift_the_limits_of_their_own_key(world: World) -> None:
    made = make_key(world)
    with pytest.raises(Forbidden):
        access.limit_key(world.ctx, Actor("ann", "editor"), key=made["id"])


def test_a_key_may_be_for_functions(world: World) -> None:
    made = access.create_key(world.ctx, world.actor, user="ann", role="invoker", endpoints=["e", "function:resize"])
    assert made["endpoints"] == ["e", "function:resize"]
    with pytest.raises(InvalidInput):
        access.create_key(world.ctx, world.actor, user="ann", role="invoker", endpoints=["function:a/b"])


def test_an_attempt_has_one_key_however_often_it_is_asked_for(world: World) -> None:
    ctx = world.ctx
    loan = {"user": "admin", "alias": "loopline-editor", "role": "editor", "session": "boxes"}
    key = access_keys.of_attempt(ctx, attempt="at_1", loan=loan, seconds=60)
    again = access_keys.of_attempt(ctx, attempt="at_1", loan=loan, seconds=60)
    other = access_keys.of_attempt(ctx, attempt="at_2", loan=loan, seconds=60)

    assert key == again != other
    holder = access_keys.find(ctx, key["id"])
    assert holder is not None and access_keys.token_matches(holder, key["token"])
    assert (holder.actor.role, holder.alias, holder.session) == ("editor", "loopline-editor", "boxes")
    lent = access_keys.lend(ctx, holder.actor, alias="loopline-viewer", role="viewer", session="boxes", seconds=900)

    with ctx.db.transaction() as tx:
        access_keys.end_with(ctx, tx, "at_1")

    assert access_keys.find(ctx, key["id"]) is None and access_keys.find(ctx, lent["id"]) is None
    assert access_keys.find(ctx, other["id"]) is not None


def test_temporary_keys_end_with_the_api_key_that_took_them(world: World) -> None:
    made = make_key(world)
    actor = access.authenticate(world.ctx, made["key"])
    lent = access_keys.lend(world.ctx, actor, alias="loopline-viewer", role="viewer", session="nightly", seconds=900)
    assert access_keys.find(world.ctx, lent["id"]) is not None

    access.revoke_key(world.ctx, world.actor, key=made["id"])

    assert access_keys.find(world.ctx, lent["id"]) is None
