"""Which compiled form stands for a version while others are being made, or could not be."""

from typing import Any

import pytest

from loopline.control import compilations
from loopline.errors import Conflict
from loopline.store import records
from loopline.testing.world import World

VERSION = {"id": "ve_1", "model": "m", "number": 1, "copied_from": None, "artifact": {"executable": True}}


def compiled(world: World, *ways: str, text: str = "") -> str:
    """A conversion that goes these ways; the digest of what it made."""
    made = world.ctx.blobs.put_bytes(text.encode()).digest
    artifact = {"sha256": made, "kind": "file", "name": "model.onnx", "executable": False, "sealed": None}
    facts: dict[str, Any] = {"version": "ve_1", "model": "m", "number": 1, "format": "onnx", "tolerance": 1e-6}
    with world.ctx.db.transaction() as tx:
        row = records.create(tx, "compilation", actor="ann", by="ann", artifact=artifact, **facts)
        for status in ways:
            records.move(tx, "compilation", row["id"], status, actor="ann", reason=status.lower())
    return made


def served(world: World) -> str | None:
    """The digest of what servers of the version would be given."""
    found = compilations.served(world.ctx, VERSION)
    return None if found is None else found["model_dir"].rpartition("/")[2]


def test_an_accepted_form_serves_until_a_comparison_says_otherwise(world: World) -> None:
    first = compiled(world, "Converting", "Passed", text="first")
    assert served(world) == first

    compiled(world, "Converting", text="going on")
    assert served(world) == first
    compiled(world, "Converting", "Failed", text="its job was lost")
    assert served(world) == first
    with world.ctx.db.read() as tx:
        assert compilations.accepted(tx, VERSION)["artifact"]["sha256"] == first

    second = compiled(world, "Converting", "Passed", text="second")
    assert served(world) == second
    compiled(world, "Converting", "Refused", text="differs")
    assert served(world) is None
    with world.ctx.db.read() as tx, pytest.raises(Conflict, match="its conversion was Refused: refused"):
        compilations.accepted(tx, VERSION)


def test_a_first_conversion_that_goes_on_stands_for_nothing(world: World) -> None:
    compiled(world, "Converting")
    assert served(world) is None
    with world.ctx.db.read() as tx, pytest.raises(Conflict, match="is being converted"):
        compilations.accepted(tx, VERSION)
