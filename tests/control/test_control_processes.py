"""What the supervisor is asked to run."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from loopline.control import processes
from loopline.testing.clock import ManualClock
from loopline.testing.world import World


def test_a_server_started_again_is_not_taken_for_its_predecessor(world: World) -> None:
    spec = {"model_dir": "/nowhere", "handler": "predict"}
    first = processes.server(world.ctx, "va_1", 0, spec, "python")
    Path(first["status"]).write_text('{"state": "ready"}')
    assert processes.server_state(first)["state"] == "ready"
    second = processes.server(world.ctx, "va_1", 0, spec, "python")
    assert processes.server_state(second)["state"] == "absent"
    assert not {first["id"], first["socket"], first["status"]} & {second["id"], second["socket"], second["status"]}


def test_a_socket_s_path_fits_into_an_address(world: World) -> None:
    room = 60 - len(os.fsencode(world.ctx.settings.run_dir))  # the longest run_dir that settings choose
    entry = processes.server(world.ctx, world.ctx.ids.new("va"), 9, {"model_dir": "/nowhere"}, "python")
    assert len(os.fsencode(entry["socket"])) + room < 108


def test_files_of_servers_that_are_gone_are_removed_after_a_while(world: World) -> None:
    entry = processes.server(world.ctx, "va_1", 0, {"model_dir": "/nowhere"}, "python")
    status = Path(entry["status"])
    status.write_text("{}")
    log = world.ctx.settings.dir / "logs" / f"{entry['id']}.log"
    log.parent.mkdir(exist_ok=True)
    log.touch()
    world.ctx.cache.pop("processes", None)
    processes.write(world.ctx)
    assert status.exists()
    assert log.exists()
    os.utime(status, (0, 0))
    os.utime(log, (0, 0))
    world.ctx.cache.pop("processes", None)
    processes.write(world.ctx)
    assert not status.exists()
    assert not log.exists()


def test_temporary_files_of_servers_that_are_gone_stay_while_they_may_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    with closing(World(tmp_path, clock=clock)) as world:
        entry = processes.server(world.ctx, "va_1", 0, {"model_dir": "/nowhere"}, "python")
        scratch = Path(entry["status"]).with_suffix(".tmp")
        replacement = scratch.with_name(f"{scratch.stem}.b.tmp")  # of the process that took its place
        for folder in (scratch, replacement):
            (folder / "ml").mkdir(parents=True)

        def look(wanted: list[dict[str, Any]]) -> list[bool]:
            monkeypatch.setattr(processes, "_servers", lambda _: wanted)
            world.ctx.cache.pop("processes", None)
            processes.write(world.ctx)
            return [scratch.exists(), replacement.exists()]

        for wanted in ([entry], [], [entry]):  # it is wanted again after a while
            assert look(wanted) == [True, True]
            clock.advance(processes.FORGOTTEN_SECONDS + 1)
        assert look([]) == [True, True]
        clock.advance(processes.FORGOTTEN_SECONDS)
        assert look([]) == [True, True]
        clock.advance(1)
        assert look([]) == [False, False]
