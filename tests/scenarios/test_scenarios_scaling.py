"""Servers come and go on a real installation while its processes are killed: nothing is lost, and it ends as wanted."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loopline.config import run_dir_for
from loopline.testing.boxes import LOOP, project
from loopline.testing.live import Platform, until

ENDPOINT = """
[endpoint]
name = "boxes"

[rollout]
strategy = "all-at-once"

[scaling]
min = 0
max = 3
target_in_flight = 50
idle_seconds = 1
scale_in_cooldown_seconds = 1
scale_out_cooldown_seconds = 0
"""
ROW = {"instances": [{"size": 9.0}]}
RIGHT = {"predictions": ["large"]}


class Stage:
    """An installation that serves boxes, with a look at its processes."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.run_dir = run_dir_for(platform.folder)

    def children(self) -> dict[str, dict[str, Any]]:
        state = json.loads((self.run_dir / "supervisor.json").read_bytes())
        return {child["id"]: child for child in state["children"]}

    def servers(self) -> list[dict[str, Any]]:
        return [child for child in self.children().values() if child["kind"] == "server"]

    def running(self) -> int:
        return sum(child["state"] == "running" for child in self.servers())

    def strangers(self) -> set[int]:
        """Living children of the supervisor that it does not know: servers that nobody asked for any more."""
        below = {
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == self.platform.pid
        }
        return below - {child["pid"] for child in self.children().values()}

    def only_known(self) -> None:
        """Who is started is told to the supervisor at once, and told by it a little later."""
        until(lambda: not self.strangers(), "the supervisor knows all of its children", 60)

    def published(self) -> int:
        document = json.loads((self.platform.folder / "snapshot.json").read_bytes())
        return len(document["endpoints"]["boxes"]["variants"][0]["servers"])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(until(lambda: self.platform.process(name), f"{name} runs"), number)

    @contextmanager
    def standing_still(self, name: str) -> Iterator[None]:
        """The process is there meanwhile, and does nothing."""
        pid = until(lambda: self.platform.process(name), f"{name} runs")
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: _stat(Path(f"/proc/{pid}/stat"))[0] == "T", f"{name} stands still")
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def asleep(self) -> None:
        until(lambda: [child["state"] for child in self.servers()] == ["asleep"], "the server sleeps", 60)

    def scale(self, least: int, most: int, target: float = 50) -> None:
        body = {"min": least, "max": most, "target_in_flight": target}
        path = "/api/endpoints/boxes/scaling"
        until(lambda: self.platform.ask("PUT", path, body).status == 200, "control is there", 60)

    def predict(self) -> tuple[int, Any]:
        answer = self.platform.predict(ROW)
        return answer.status, answer.json


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    platform = Platform(tmp_path_factory.mktemp("scaling") / "data")
    platform.start()
    try:
        ended = platform.run(project(loop_toml=LOOP + ENDPOINT))
        assert ended["status"] == "Succeeded", ended
        platform.call("POST", "/api/models/boxes/versions/1/approve", {})
        until(lambda: platform.call("GET", "/api/endpoints/boxes")["status"] == "InService", "boxes is served", 60)
        yield Stage(platform)
    finally:
        platform.stop()


class Load:
    """Clients that ask all the time; ``wrong``: what was not answered rightly, ``cut``: connections that were lost."""

    def __init__(self, stage: Stage, threads: int = 6) -> None:
        self.stage, self.right, self.cut, self.wrong = stage, 0, 0, []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                found = self.stage.predict()
            except OSError:
                self.cut += 1
                continue
            if found == (200, RIGHT):
                self.right += 1
            else:
                self.wrong.append(found)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        until(lambda: self.right > 20, "requests are answered", 60)
        return self

    def __exit__(self, *_: object) -> None:
        before = self.right
        until(lambda: self.right > before + 20, "requests are still answered", 60)
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_first_request_is_served_from_a_fork_while_control_is_down(stage: Stage) -> None:
    stage.asleep()
    with stage.standing_still("control"):
        assert stage.predict() == (200, RIGHT)
    (server,) = stage.servers()
    assert server["forked"] is True


def test_without_a_forkserver_the_first_request_is_served_by_a_new_interpreter(stage: Stage) -> None:
    stage.asleep()
    forkserver = next(child for child in stage.children().values() if child["kind"] == "forkserver")
    with stage.standing_still(forkserver["id"]):  # it is there, and does not answer
        assert stage.predict() == (200, RIGHT)
        (server,) = stage.servers()
        assert server["forked"] is False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(60)
        asking.connect(str(stage.run_dir / "fork" / f"{forkserver['id']}.sock"))
        asking.sendall(b'{"status": true}\n')
        assert json.loads(asking.recv(4096))["pid"] == forkserver["pid"]  # so it has come to what it was asked before
    stage.only_known()  # and that is not started after all
    assert stage.predict() == (200, RIGHT)


def test_a_gateway_that_dies_during_a_cold_start_takes_nobody_else_along(stage: Stage) -> None:
    stage.asleep()
    before = stage.children()
    (sleeping,) = stage.servers()
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(stage.predict())
        except OSError as error:
            answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: stage.servers()[0] != sleeping, "somebody asked", 60)
    stage.kill("gateway-0")
    for thread in threads:
        thread.join(120)
    assert len(answers) == len(threads)
    assert all(answer == (200, RIGHT) or isinstance(answer, OSError) for answer in answers)
    until(lambda: stage.predict() == (200, RIGHT), "the next gateway serves", 60)
    ends = {name: child["restarts"] - before[name]["restarts"] for name, child in stage.children().items()}
    assert {name: count for name, count in ends.items() if count} == {"gateway-0": 1}
    stage.only_known()


def test_load_brings_servers_and_its_end_takes_all_of_them_away(stage: Stage) -> None:
    stage.scale(0, 2, target=0.2)
    with Load(stage) as load:
        until(lambda: stage.published() == 2 and stage.running() == 2, "a second server serves", 120)
    assert load.wrong == []
    stage.asleep()
    found = stage.platform.call("GET", "/api/events?noun=variant&limit=200")["items"]
    scaled = [row for row in found if row["kind"] == "scaled"]
    assert any(row["data"]["to"] == 2 and "requests in flight per server" in row["reason"] for row in scaled)
    assert stage.predict() == (200, RIGHT)


@pytest.mark.parametrize("victim", ["control", "server", "gateway-0"])
def test_out_and_in_again_under_load_with_a_process_killed_on_the_way(stage: Stage, victim: str) -> None:
    stage.scale(1, 3)
    with Load(stage) as load:
        stage.scale(3, 3)
        until(lambda: len(stage.servers()) == 3, "three servers are wanted", 60)
        if victim == "server":
            newest = max(stage.servers(), key=lambda child: child["started_at"] or 0.0)["id"]
            until(lambda: stage.children()[newest]["pid"], "it has a process", 60)
            with stage.standing_still("control"):  # so that nobody is told of it meanwhile
                if newest not in {Path(path).stem for path in _published_paths(stage)}:
                    stage.kill(newest)
        else:
            stage.kill(victim)
        until(lambda: stage.published() == 3 and stage.running() == 3, "three servers serve", 90)
        stage.scale(1, 1)
        until(lambda: stage.published() == 1, "one server is in the snapshot", 60)
        if victim == "control":
            stage.kill(victim)
        until(lambda: len(stage.servers()) == 1 and stage.running() == 1, "one server is left", 90)
    assert load.wrong == []
    assert victim == "gateway-0" or not load.cut


def _published_paths(stage: Stage) -> list[str]:
    document = json.loads((stage.platform.folder / "snapshot.json").read_bytes())
    return list(document["endpoints"]["boxes"]["variants"][0]["servers"])


def test_a_killed_supervisor_s_successor_goes_on_where_it_was(stage: Stage) -> None:
    stage.scale(0, 3)
    stage.asleep()
    assert stage.predict() == (200, RIGHT)
    _start_again(stage)
    assert [child["state"] for child in stage.servers()] == ["asleep"]
    assert stage.predict() == (200, RIGHT)
    stage.scale(2, 3)
    until(lambda: len(stage.servers()) == 2, "two servers are wanted", 60)
    _start_again(stage)
    until(lambda: stage.published() == 2 and stage.running() == 2, "two servers serve", 90)
    assert stage.predict() == (200, RIGHT)


def _start_again(stage: Stage) -> None:
    """Kill the supervisor, see its children end, and start another."""
    pids = [child["pid"] for child in stage.children().values() if child["pid"]]
    os.kill(stage.platform.pid, signal.SIGKILL)
    until(lambda: not any(_alive(pid) for pid in pids), "all of its children end", 30)
    stage.platform.stop()
    stage.platform.start()


def _alive(pid: int) -> bool:
    return _parent(Path(f"/proc/{pid}/stat")) is not None


def _parent(stat: Path) -> int | None:
    """Of a living process; None where there is none."""
    state, parent = _stat(stat)
    return None if state in "ZX" else int(parent)


def _stat(path: Path) -> tuple[str, str]:
    """The state of a process and its parent, as proc(5) has them; X when it is gone."""
    try:
        state, parent = path.read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", "0"
    return state, parent
