"""Keys: what was revoked or changed is so for the next request, however often the key was used before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.control import access
from loopline.errors import Unauthenticated
from loopline.testing.clock import ManualClock
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
