"""One process of the tree: what its end means for its next start, what may ask for it, and its log."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from loopline.children import KINDS, Child, Spec, backoff_seconds, cut_log, read_processes
from loopline.errors import InvalidInput


@pytest.mark.parametrize(("kind", "cap"), [("control", 2.0), ("gateway", 2.0), ("server", 10.0)])
def test_backoff_doubles_up_to_the_cap_of_its_kind(kind: str, cap: float) -> None:
    waits = [backoff_seconds(KINDS[kind], deaths) for deaths in range(12)]
    assert waits[:5] == [0.0, 0.0, 0.1, 0.2, 0.4]
    assert waits[-1] == cap == backoff_seconds(KINDS[kind], 10**6)


def live(child: Child, folder: Path, born: float, died: float) -> None:
    """One life of a child that ends by itself, at times of our own."""
    child.start(folder / "log", born)
    assert child.process
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert child.reap(died)


def test_a_long_life_is_forgiven(tmp_path: Path) -> None:
    child = Child(Spec("a", "server", ("false",), {"PATH": "/usr/bin:/bin"}))
    for born in (100.0, 101.0, 102.0):
        live(child, tmp_path, born, born + 0.5)
    assert child.start_due == pytest.approx(102.5 + 0.2)
    live(child, tmp_path, 110.0, 150.0)
    assert (child.start_due, child.restarts) == (150.0, 4)


def test_a_server_that_never_came_to_serve_died_quickly_however_long_it_loaded(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    child = Child(Spec("a", "server", ("false",), {"PATH": "/usr/bin:/bin"}, status=str(status)))
    for born in (100.0, 200.0):
        live(child, tmp_path, born, born + 50.0)
    assert child.start_due == pytest.approx(250.0 + 0.1)
    child.start(tmp_path / "log", 300.0)
    assert child.process
    status.write_text(json.dumps({"id": "a", "state": "ready", "at": time.time()}))
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    child.reap(350.0)
    assert child.start_due == 350.0


@pytest.mark.parametrize(("asked", "due"), [(True, 302.0), (False, None)])
def test_a_server_on_demand_that_is_asked_for_while_it_stops_is_due_at_once(
    tmp_path: Path, asked: bool, due: float | None
) -> None:
    child = Child(Spec("a", "server", ("sleep", "600"), {"PATH": "/usr/bin:/bin"}, on_demand=True))
    child.ask(200.0)
    child.start(tmp_path / "log", 200.0)
    child.stop(300.0)
    if asked:
        child.ask(301.0)
    assert child.process
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert child.reap(302.0)
    assert child.start_due == due


def test_a_program_that_is_not_there_is_an_exit_like_any_other(tmp_path: Path) -> None:
    child = Child(Spec("a", "server", ("/nowhere/python",), {}))
    child.start(tmp_path / "log", 5.0)
    assert child.last_exit and child.last_exit["code"] == 127
    assert "/nowhere/python" in child.last_exit["error"]
    assert (child.state, child.start_due) == ("waiting", 5.0)


@pytest.mark.parametrize(
    "entry",
    [
        {"id": "a/b", "argv": ["true"]},
        {"id": "", "argv": ["true"]},
        {"id": "..", "argv": ["true"]},
        {"id": "a\n", "argv": ["true"]},
        {"id": "a", "argv": []},
        {"id": "a", "argv": "true"},
        {"id": "a", "argv": ["true"], "environ": {"A": 1}},
        {"id": "a", "argv": ["true"], "cwd": 3},
        {"id": "a", "argv": ["true"], "drain_seconds": -1},
        "a",
    ],
)
def test_an_entry_that_is_not_proper_is_left_out(entry: Any) -> None:
    good = {"id": "ok", "argv": ["true"]}
    specs, problems = read_processes(json.dumps({"servers": [entry, good]}).encode(), [])
    assert [spec.id for spec in specs] == ["ok"]
    assert len(problems) == 1


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"servers": 3}', b"\xff", b"[" * 100000])
def test_a_file_that_cannot_be_read_is_an_error(raw: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_processes(raw, [])


def test_cutting_keeps_the_newest_part(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"old" * 4_000_000 + b"newest")
    cut_log(log)
    assert log.read_bytes() == b""
    kept = (tmp_path / "a.log.1").read_bytes()
    assert kept.endswith(b"newest")
    assert len(kept) == 10 * 1000 * 1000
    log.write_bytes(b"little")
    cut_log(log)
    assert log.read_bytes() == b"little"
