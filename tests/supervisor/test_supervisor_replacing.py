"""Another process in the place of a server that fails: beside it until it is ready, not for ever, and told."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from loopline import replacing, runtime
from loopline.children import Child, Spec
from loopline.domain.frames import AnswerReader, predict_parts
from loopline.replacing import ATTEMPTS, FIRST_WAIT_SECONDS, WELL_SECONDS, Replacing, beside, wait_seconds

sys.path.insert(0, str(Path(__file__).parent))

from process_tree import Tree, gone, tree, wait_for

__all__ = ["tree"]  # the fixture
SERVE = Path(runtime.__file__).parent / "serve.py"
PREDICT = """
import os
def load(model_dir): return os.getpid()
def predict(model, batch): return [model for _ in batch]
"""


def model(tree: Tree, name: str) -> dict[str, Any]:
    """The entry of a model server that answers its pid."""
    home = tree.dir.parent / name
    home.mkdir()
    (home / "predict.py").write_text(PREDICT)
    spec = {"id": name, "model_dir": str(home), "code_dir": str(home), "handler": "predict"}
    (home / "spec.json").write_text(json.dumps(spec))
    argv = [sys.executable, "-I", str(SERVE), "--spec", str(home / "spec.json")]
    argv += ["--socket", str(home / "s.sock"), "--status", str(home / "status.json")]
    environ = {"OMP_NUM_THREADS": "1"}
    return {"id": name, "argv": argv, "environ": environ, "cwd": str(home), "status": str(home / "status.json")}


def served(tree: Tree) -> tuple[Path, int]:
    """The folder and the pid of a model server that is ready."""
    tree.start()
    tree.want(model(tree, "sv_a"))
    home = tree.dir.parent / "sv_a"
    wait_for(lambda: state(home)["state"] == "ready")
    return home, tree.running("sv_a")


def state(home: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((home / "status.json").read_text())
    except (OSError, ValueError):
        return {"state": "absent"}
    return found


def ask(link: socket.socket) -> int:
    """The pid that the server at the other end answers."""
    link.sendall(b"".join(predict_parts(1, b"application/json", b"rq", b'{"instances": [[1]]}')))
    reader = AnswerReader()
    while not (answers := reader.feed(link.recv(65536))):
        pass
    return int(json.loads(answers[0][3])["predictions"][0])


def connected(home: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(60)
    link.connect(str(home / "s.sock"))
    return link


def test_another_process_takes_over_the_socket_when_it_is_ready(tree: Tree) -> None:
    home, old = served(tree)
    code = (home / "predict.py").read_text()
    slow = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    (home / "predict.py").write_text(slow + code)
    before = connected(home)
    tree.tell({"kind": "replace", "id": "sv_a"})
    wait_for(lambda: len([child for child in tree.state()["children"] if child["id"].startswith("sv_a")]) == 2)
    wait_for(lambda: (tree.state()["failing"].get("sv_a") or {}).get("attempts") == 1)
    tree.tell({"kind": "replace", "id": "sv_a"})  # it is under way
    with connected(home) as meanwhile:
        assert ask(before) == ask(meanwhile) == state(home)["pid"] == old
    (home / "go").touch()
    new = tree.running("sv_a", but=old)
    wait_for(lambda: gone(old))
    with connected(home) as link:
        assert ask(link) == new == state(home)["pid"]
    assert tree.child("sv_a")["restarts"] == 1 and not tree.state()["failing"]
    (told,) = tree.state()["replacements"]
    assert (told["server"], told["kind"]) == ("sv_a", "replaced") and f"process {new} took its place" in told["reason"]

    (home / "predict.py").write_text("import nothing_like_this\n")  # the next attempt has to wait
    tree.tell({"kind": "replace", "id": "sv_a"})
    assert wait_for(lambda: tree.state()["failing"])["sv_a"]["attempts"] == 1
    assert tree.running("sv_a") == new
    before.close()
    os.kill(new, 9)  # what took over is kept up under the same name
    (home / "predict.py").write_text(code)
    again = tree.running("sv_a", but=new)
    wait_for(lambda: state(home).get("pid") == again and state(home)["state"] == "ready")
    with connected(home) as link:
        assert ask(link) == again
    assert tree.stop() == 0


def test_what_does_not_come_to_serve_leaves_the_old_one_where_it_is(tree: Tree) -> None:
    home, old = served(tree)
    (home / "predict.py").write_text("import nothing_like_this\n")
    tree.tell({"kind": "replace", "id": "sv_a"})
    (told,) = wait_for(lambda: tree.state()["replacements"])
    assert told["kind"] == "not_replaced" and "exit code 1 before it was ready" in told["reason"]
    with connected(home) as link:
        assert ask(link) == old == state(home)["pid"]
    assert state(home)["state"] == "ready" and not list(home.glob("*.*.sock"))


class Process:
    """Stands where a running process does."""

    pid = os.getpid()

    def __init__(self) -> None:
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def failing(**more: Any) -> Child:
    argv = ("serve", "--socket", "/run/a.sock", "--status", "/run/a.json")
    spec = Spec("va_1-0.ab12", "server", argv, {}, status="/run/a.json", **more)
    child = Child(spec)
    child.process, child.running = Process(), spec  # type: ignore[assignment]
    return child


def test_a_model_that_is_broken_is_restarted_a_few_times_and_then_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "has_room", lambda pid: False)
    worker, child, starts = Replacing(), failing(), []
    for second in range(int(FIRST_WAIT_SECONDS * 2**ATTEMPTS) + 100):
        child.kill_due = None  # it has ended, and runs again
        worker.ask(child, float(second))
        if child.process.signals:  # type: ignore[union-attr]
            starts.append(second)
            child.process.signals.clear()  # type: ignore[union-attr]
    assert starts == [0, 30, 90, 210, 450, 930]
    assert [wait_seconds(attempts) for attempts in (1, 2, 5)] == [30.0, 60.0, 480.0]
    assert [told["kind"] for told in worker.told] == ["restarted"] * ATTEMPTS + ["left"]
    assert "memory does not hold two" in worker.told[0]["reason"]
    now = 2020.0
    assert "left as it is" in worker.describe(now)[child.id]["says"]
    worker.ask(child, now + 2 * WELL_SECONDS)
    assert worker.told[-1]["kind"] == "restarted" and "attempt 1 of" in worker.told[-1]["reason"]


def test_one_at_a_time_and_servers_on_demand_in_their_place() -> None:
    worker, first, second, asleep = Replacing(), failing(), failing(), failing(on_demand=True)
    second.id, asleep.id = "va_2-0.ab12", "va_3-0.ab12"
    worker.ask(first, 0.0)
    worker.ask(second, 0.0)
    assert [child.id for child in worker.children] == ["va_1-0.ab12.b"] and not worker.told
    worker.look({first.id: first}, Path("/nowhere"), 1.0)  # its spec cannot be started; the old one stays
    first.spec = None  # nobody wants it any more
    worker.look({first.id: first}, Path("/nowhere"), 2.0)
    assert not worker.children
    worker.ask(asleep, 3.0)
    assert [(told["server"], told["kind"]) for told in worker.told] == [("va_3-0.ab12", "restarted")]


def test_the_program_beside_it_differs_in_what_it_cannot_share() -> None:
    spec = failing().spec
    assert spec is not None
    twin = beside(spec, "c")
    assert twin is not None and twin.argv == ("serve", "--socket", "/run/a.c.sock", "--status", "/run/a.c.json")
    assert (twin.id, twin.status) == ("va_1-0.ab12.c", "/run/a.c.json")
    assert beside(spec._replace(on_demand=True), "c") is None
    assert beside(spec._replace(argv=("serve", "--socket")), "c") is None
