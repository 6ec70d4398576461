"""Servers on demand: started when asked for, forked where a forkserver is, stopped when idle or memory is short."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from loopline import runtime
from loopline.children import start_time
from loopline.demand import BUSY_SECONDS, LOADING_AT_ONCE, USED_SHARE, Member, plan, pss_bytes, read_use

sys.path.insert(0, str(Path(__file__).parent))

from process_tree import Tree, tree, wait_for

__all__ = ["tree"]  # the fixture
RUNTIME = Path(runtime.__file__).parent
PREDICT = """
import os
def load(model_dir):
    return os.environ.get("COLOUR")
def predict(model, batch):
    return [{"colour": model, "folder": os.getcwd()} for _ in batch]
"""


def forkserver(tree: Tree, name: str = "fork-a", preload: str = "json") -> tuple[dict[str, Any], str]:
    path = tree.run / "fork" / f"{name}.sock"
    path.parent.mkdir(exist_ok=True, parents=True)
    argv = [
        sys.executable,
        "-I",
        str(RUNTIME / "forkserver.py"),
        "--socket",
        str(path),
        "--preload",
        preload,
        "--serve",
    ]
    return {"id": name, "argv": argv, "environ": {}}, str(path)


def model(tree: Tree, name: str, **more: Any) -> dict[str, Any]:
    folder = tree.dir.parent / name
    folder.mkdir()
    (folder / "predict.py").write_text(PREDICT)
    spec = {"id": name, "model_dir": str(folder), "code_dir": str(folder), "handler": "predict", "warmup": [[1]]}
    (folder / "spec.json").write_text(json.dumps(spec))
    status = str(folder / "status.json")
    argv = [sys.executable, "-I", str(RUNTIME / "serve.py"), "--spec", str(folder / "spec.json")]
    argv += ["--socket", str(folder / "s.sock"), "--status", status]
    return {
        "id": name,
        "argv": argv,
        "environ": {"COLOUR": "green", "OMP_NUM_THREADS": "1"},
        "cwd": str(folder),
        "status": status,
        **more,
    }


def says(entry: dict[str, Any]) -> str:
    try:
        return str(json.loads(Path(entry["status"]).read_text())["state"])
    except (OSError, ValueError):
        return "absent"


def use(tree: Tree, **servers: tuple[int, float]) -> None:
    draft = tree.run / ".draft"
    draft.write_text(json.dumps({"pid": os.getpid(), "servers": servers}))
    draft.replace(tree.run / "gateway-0.json")


def test_a_server_on_demand_sleeps_until_it_is_asked_for(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", on_demand=True), tree.entry("sv_b"))
    tree.running("sv_b")
    assert tree.child("sv_a")["state"] == "asleep"
    first = tree.wake("sv_a")
    wait_for(lambda: tree.events("started", "sv_a"))
    tree.tell({"kind": "start", "id": "sv_a"})
    tree.tell({"kind": "stop", "id": "sv_a"})
    wait_for(lambda: tree.child("sv_a")["state"] == "asleep")
    tree.tell({"kind": "stop", "id": "sv_b"})  # runs all the time: not to be stopped by a message
    assert tree.wake("sv_a") != first
    wait_for(lambda: len(tree.events("started", "sv_a")) == 2)
    assert len(tree.events("started", "sv_b")) == 1


def test_one_that_died_waits_to_be_asked_for_and_not_longer_than_its_backoff(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", "--exit", "127", on_demand=True))  # a quick death however slowly it came
    wait_for(lambda: tree.child("sv_a"))

    def died(times: int) -> bool:
        if tree.child("sv_a")["state"] == "asleep" and tree.child("sv_a")["restarts"] < times:
            tree.tell({"kind": "start", "id": "sv_a"})
        return bool(tree.child("sv_a")["restarts"] >= times)

    for deaths in range(1, 5):
        wait_for(lambda deaths=deaths: died(deaths))
        wait_for(lambda: tree.child("sv_a")["state"] == "asleep")
    times = [row[0] for row in tree.events("started", "sv_a")]
    assert times[3] - times[2] >= 0.15  # the third death in a row: asked for at once, started later


def test_asked_for_while_it_stops_it_comes_back(tree: Tree) -> None:
    tree.start()
    go = tree.dir.parent / "go"
    tree.want(tree.entry("sv_a", "--linger-until", str(go), on_demand=True))
    old = tree.wake("sv_a")
    wait_for(lambda: tree.events("started", "sv_a"))
    tree.tell({"kind": "stop", "id": "sv_a"})
    wait_for(lambda: tree.child("sv_a")["state"] == "stopping")
    tree.tell({"kind": "start", "id": "sv_a"})
    go.touch()
    assert tree.wake("sv_a") != old


def test_a_hung_server_is_restarted_within_the_grace_it_is_given(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", "--stubborn", drain_seconds=3))
    old = tree.running("sv_a")
    wait_for(lambda: tree.events("started", "sv_a"))
    tree.tell({"kind": "restart", "id": "sv_a", "grace_seconds": 0.2})
    assert tree.running("sv_a", but=old)
    assert tree.child("sv_a")["last_exit"]["signal"] == signal.SIGKILL
    control = tree.child("control")["pid"]
    tree.tell({"kind": "restart", "id": "control", "grace_seconds": 0})  # its own programs are nobody's to restart
    wait_for(lambda: len(tree.events("started", "sv_a")) == 2)
    assert tree.child("control")["pid"] == control


def test_a_forked_server_is_the_supervisors_own_child(tree: Tree) -> None:
    tree.start()
    fork, path = forkserver(tree)
    entry = model(tree, "sv_a", on_demand=True, fork=path)
    tree.want(entry, forkservers=(fork,))
    pid = tree.wake("sv_a")
    wait_for(lambda: says(entry) == "ready")
    assert tree.child("sv_a")["forked"] is True
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert tree.process and parent == tree.process.pid
    assert os.getpgid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").resolve() == Path(entry["cwd"]).resolve()
    assert Path(f"/proc/{pid}/fd/1").readlink() == tree.dir / "logs" / "sv_a.log"
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    opened = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert not [name for name in opened if name.endswith("fork-a.sock")]
    os.kill(pid, signal.SIGKILL)  # reaped, and not started again before somebody asks
    wait_for(lambda: tree.child("sv_a")["state"] == "asleep")
    assert tree.child("sv_a")["last_exit"]["signal"] == signal.SIGKILL
    assert tree.stop() == 0


def test_a_forked_server_dies_with_its_supervisor_and_outlives_its_forkserver(tree: Tree) -> None:
    tree.start()
    fork, path = forkserver(tree)
    entry = model(tree, "sv_a", on_demand=True, fork=path)
    tree.want(entry, forkservers=(fork,))
    pid = tree.wake("sv_a")
    wait_for(lambda: says(entry) == "ready")
    os.kill(tree.running("fork-a"), signal.SIGKILL)
    wait_for(lambda: tree.child("fork-a").get("restarts") == 1)
    assert tree.child("sv_a")["pid"] == pid and tree.child("sv_a")["state"] == "running"
    assert tree.process
    tree.process.kill()
    tree.process.wait()
    wait_for(lambda: start_time(pid) is None)


def test_a_forked_server_s_libraries_have_the_threads_that_it_is_given(tree: Tree) -> None:
    tree.start()
    fork, path = forkserver(tree, preload="numpy,threadpoolctl")
    entry = model(tree, "sv_a", on_demand=True, fork=path)
    code = (
        "from threadpoolctl import threadpool_info\nprint('THREADS', [x['num_threads'] for x in threadpool_info()])\n"
    )
    (Path(entry["cwd"]) / "predict.py").write_text(code + PREDICT)
    entry["environ"]["OMP_NUM_THREADS"] = "1"
    tree.want(entry, forkservers=(fork,))
    tree.wake("sv_a")
    wait_for(lambda: says(entry) == "ready")
    log = (tree.dir / "logs" / "sv_a.log").read_text()
    assert "THREADS [1" in log, log
    assert tree.child("sv_a")["forked"] is True


def test_a_server_waits_for_a_forkserver_that_imports(tree: Tree) -> None:
    tree.start()
    slow = tree.dir.parent / "slow"
    slow.mkdir()
    fork, path = forkserver(tree)
    fork["argv"][1:2] = []  # without -I, so that what it imports can be put in its way
    fork["argv"][fork["argv"].index("--preload") + 1] = "waits"
    fork["environ"] = {"PYTHONPATH": str(slow), "LOOPLINE_ROOM": "0" * 256}
    waits = f"import os, time\nwhile not os.path.exists({str(slow / 'go')!r}): time.sleep(0.01)\n"
    (slow / "waits.py").write_text(waits)
    entry = model(tree, "sv_a", on_demand=True, fork=path)
    tree.want(entry, forkservers=(fork,))
    tree.running("fork-a")
    for _ in range(8):  # as the gateway does while somebody waits
        tree.tell({"kind": "start", "id": "sv_a"})
        time.sleep(0.25)
    assert tree.child("sv_a")["started_at"] is None
    (slow / "go").touch()
    tree.wake("sv_a")
    wait_for(lambda: says(entry) == "ready")
    assert tree.child("sv_a")["forked"] is True


def test_without_a_forkserver_it_is_started_plainly(tree: Tree) -> None:
    tree.start()
    entry = model(tree, "sv_a", on_demand=True, fork=str(tree.run / "fork" / "fork-gone.sock"))
    broken = {"id": "fork-b", "argv": ["/bin/false"], "environ": {}}
    tree.want(entry, forkservers=(broken,))
    tree.wake("sv_a")
    wait_for(lambda: says(entry) == "ready")
    assert tree.child("sv_a")["forked"] is False


def test_an_idle_server_is_stopped_and_a_used_one_is_not(tree: Tree) -> None:
    tree.start()
    tree.want(*(tree.entry(name, on_demand=True, idle_seconds=0.6) for name in ("sv_a", "sv_b")))
    use(tree, sv_a=(1, time.time()), sv_b=(1, time.time()))  # a request that takes long is no idleness
    for name in ("sv_a", "sv_b"):
        tree.wake(name)
    use(tree, sv_a=(0, time.time()), sv_b=(1, time.time()))
    wait_for(lambda: tree.child("sv_a")["state"] == "asleep")
    assert tree.child("sv_b")["state"] == "running"
    use(tree, sv_b=(0, time.time()))
    wait_for(lambda: tree.child("sv_b")["state"] == "asleep")


def test_a_server_that_runs_all_the_time_may_idle_away_from_the_moment_that_it_is_allowed_to(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a"))
    tree.running("sv_a")
    tree.want(tree.entry("sv_a", on_demand=True, idle_seconds=0.2))
    wait_for(lambda: tree.child("sv_a")["state"] == "asleep")
    assert len(tree.events("started", "sv_a")) == 1


def test_a_budget_is_held_by_stopping_whoever_was_used_least_recently(tree: Tree) -> None:
    tree.start()
    names = [f"sv_{number}" for number in range(6)]
    entries = [model(tree, name, on_demand=True, group="many") for name in names]
    budget = 40.0
    document = {"servers": entries, "forkservers": [], "budgets": {"many": budget}}
    (tree.dir / "processes.new").write_text(json.dumps(document))
    (tree.dir / "processes.new").replace(tree.dir / "processes.json")
    tree.tell({"kind": "processes"})
    sums = []

    def asked(entry: dict[str, Any]) -> bool:
        tree.tell({"kind": "start", "id": entry["id"]})
        live = [c for c in tree.state()["children"] if c["id"] in names and c["pid"]]
        sums.append(sum(pss_bytes(c["pid"]) or 0 for c in live))
        use(tree, **{c["id"]: (0, c["started_at"]) for c in live})
        return tree.child(entry["id"]).get("state") == "running" and says(entry) == "ready"

    for entry in entries:
        wait_for(lambda entry=entry: asked(entry))
    assert 0 < max(sums) <= budget * 1e6
    states = {name: tree.child(name)["state"] for name in names}
    assert (states["sv_0"], states["sv_5"]) == ("asleep", "running"), states


# -- the rule ---------------------------------------------------------------------------------------------------------


def member(name: str, size: float, used_at: float = 0.0, **more: Any) -> Member:
    return Member(name, size, more.get("ready", True), more.get("stopping", False), more.get("in_flight", 0), used_at)


def test_busy_servers_are_not_stopped_for_somebody_elses_start() -> None:
    busy = [member("a", 50, used_at=99.9), member("b", 40, in_flight=1)]
    assert plan(100, busy, 20, now=100.0) == (False, [])
    assert plan(100, [member("a", 50, used_at=90.0), member("b", 40, used_at=80.0)], 20, now=100.0) == (False, ["b"])
    assert plan(100, [member("a", 50), member("b", 20)], 20, now=100.0) == (True, [])
    crowd = [member(str(number), 5, ready=False) for number in range(LOADING_AT_ONCE)]
    assert plan(100, crowd, 5, now=100.0)[0] is False  # loads leave room for those that serve
    assert plan(100, [each._replace(slow=True) for each in crowd], 5, now=100.0)[0] is True


def test_above_the_budget_even_a_busy_one_goes() -> None:
    assert plan(100, [member("a", 80, in_flight=1, used_at=5.0), member("b", 40, in_flight=1)], 0, now=9.0)[1] == ["b"]


def test_the_rule_holds_for_any_group() -> None:
    generator = random.Random(7)
    for _ in range(3000):
        now = 1000.0
        members = [
            member(
                str(number),
                generator.uniform(1, 40),
                now - generator.choice((0.0, BUSY_SECONDS / 2, 1.0, 50.0)),
                ready=generator.random() < 0.9,
                stopping=generator.random() < 0.2,
                in_flight=generator.choice((0, 0, 0, 2)),
            )
            for number in range(generator.randrange(8))
        ]
        budget, need = generator.uniform(20, 200), generator.choice((0.0, generator.uniform(1, 40)))
        starts, victims = plan(budget, members, need, now)
        held = sum(m.bytes for m in members)
        known = {m.id: m for m in members}
        staying = sum(m.bytes for m in members if not m.stopping)
        if starts:
            assert members == [] or held + need <= budget * USED_SHARE
            assert sum(not m.ready for m in members) < LOADING_AT_ONCE
        for name in victims:
            victim = known[name]
            assert victim.ready and not victim.stopping
            busy = victim.in_flight or now - victim.used_at < BUSY_SECONDS
            assert not busy or staying > budget
            staying -= victim.bytes
        if staying + need <= budget * USED_SHARE:
            spared = sorted(known[name].bytes for name in victims)
            assert not spared or staying + need + spared[-1] > budget * USED_SHARE  # no more than was needed


def test_what_gateways_wrote_is_added_up_and_rubbish_passed_over(tmp_path: Path) -> None:
    alive = {"pid": os.getpid()}
    (tmp_path / "gateway-0.json").write_text(json.dumps({**alive, "servers": {"a": [1, 5.0]}}))
    (tmp_path / "gateway-1.json").write_text(json.dumps({**alive, "servers": {"a": [2, 4.0], "b": [0, 1.0]}}))
    (tmp_path / "gateway-2.json").write_text("[")
    (tmp_path / "gateway-3.json").write_text(json.dumps({**alive, "number": 1}))
    (tmp_path / "gateway-4.json").write_text('{"pid": 4194305, "servers": {"a": [9, 9.0]}}')  # that one died
    assert read_use(tmp_path) == {"a": (3, 5.0), "b": (0, 1.0)}
