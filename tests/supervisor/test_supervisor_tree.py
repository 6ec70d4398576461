"""The process tree with small processes in every part: what is restarted, in what order it stops, what is left."""

import json
import os
import signal
import socket
import stat
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from loopline.config import load
from loopline.errors import Conflict, InvalidInput
from loopline.listening import bind, check
from loopline.supervisor import programs, run
from loopline.testing.live import free_port

sys.path.insert(0, str(Path(__file__).parent))

from process_tree import Tree, gone, tree, wait_for

__all__ = ["tree"]  # the fixture


def test_ready_means_that_control_and_a_gateway_answer(tree: Tree) -> None:
    tree.start(control=["--delay", "0.4"])
    assert {c["id"]: c["state"] for c in tree.state()["children"]} == dict.fromkeys(
        ["control", "gateway-0", "monitor"], "running"
    )
    assert tree.state()["ready"] is True
    assert tree.state()["port"] == tree.port
    assert tree.ask() == tree.child("gateway-0")["pid"]
    started, answered = tree.events("started", "control")[0][0], time.time()
    assert answered - started >= 0.4
    assert stat.S_IMODE(tree.run.stat().st_mode) == 0o700


def test_it_is_not_ready_before_control_answers(tree: Tree) -> None:
    tree.start(ready=False, control=["--delay", "600"])
    wait_for(lambda: (tree.run / "supervisor.json").exists() and tree.events("started", "gateway-0"))
    wait_for(lambda: tree.child("control").get("pid"))
    assert tree.state()["ready"] is False


@pytest.mark.parametrize("name", ["control", "gateway-0", "monitor"])
def test_a_killed_process_is_started_again_at_once(tree: Tree, name: str) -> None:
    tree.start()
    # A process that lived for a second has not died quickly: it is due at once, as the tests of children see.
    wait_for(lambda: time.time() - tree.child(name)["started_at"] > 1.0)
    old = tree.running(name)
    os.kill(old, signal.SIGKILL)
    tree.running(name, but=old)
    entry = tree.child(name)
    assert entry["restarts"] == 1
    assert entry["last_exit"]["signal"] == signal.SIGKILL
    assert tree.ask() == tree.running("gateway-0")


def test_a_process_that_dies_quickly_is_started_ever_more_slowly(tree: Tree) -> None:
    tree.start(monitor=["--exit", "127"])  # which is a quick death however slowly it came
    wait_for(lambda: len(tree.events("started", "monitor")) >= 6)
    starts = [row[0] for row in tree.events("started", "monitor")]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    # The first restart comes at once, as the tests of children see; the others wait 0.1, 0.2, 0.4 and 0.8 s.
    for gap, least in zip(gaps[1:], [0.1, 0.2, 0.4, 0.8], strict=False):
        assert gap >= least * 0.95
    assert tree.child("monitor")["last_exit"]["code"] == 127
    assert tree.child("control")["restarts"] == 0


def test_the_caller_hears_of_a_process_that_does_not_come_up(tree: Tree) -> None:
    tree.start(ready=False, control=["--exit", "127"])
    assert tree.process and tree.process.stdout
    assert tree.process.stdout.readline() == f"say control ends as soon as it starts; see {tree.dir}/logs/control.log\n"


def test_servers_come_and_go_with_the_file(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a"), tree.entry("sv_b"))
    first, second = tree.running("sv_a"), tree.running("sv_b")
    wait_for(lambda: tree.events("started", "sv_a"))
    tree.want(tree.entry("sv_b"), tell=False)  # the file alone is enough
    wait_for(lambda: not tree.child("sv_a"))
    assert gone(first)
    assert [row[3] for row in tree.events("stopped", "sv_a")] == [first]
    assert tree.running("sv_b") == second


def test_a_killed_server_is_started_again(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a"))
    old = tree.running("sv_a")
    wait_for(lambda: tree.events("started", "sv_a"))
    os.kill(old, signal.SIGKILL)
    tree.running("sv_a", but=old)
    assert tree.child("sv_a")["restarts"] == 1


def test_a_server_that_does_not_finish_in_time_is_killed_with_its_group(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", "--stubborn", "--spawn", "group", drain_seconds=0.3))
    pid = tree.running("sv_a")
    sleeper = wait_for(lambda: tree.events("spawned", "sv_a"))[0][3]
    removed_at = time.time()
    tree.want()
    wait_for(lambda: not tree.child("sv_a"))
    assert time.time() - removed_at >= 0.3
    assert not tree.events("stopped", "sv_a")
    assert gone(pid)
    wait_for(lambda: gone(sleeper))


def test_what_a_dead_process_left_in_its_group_goes_with_it(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", "--spawn", "group"))
    sleeper = wait_for(lambda: tree.events("spawned", "sv_a"))[0][3]
    os.kill(tree.running("sv_a"), signal.SIGKILL)
    wait_for(lambda: gone(sleeper))


def test_another_command_line_is_another_process(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", "--version", "1", "--linger", "0.3"))
    old = tree.running("sv_a")
    wait_for(lambda: tree.events("started", "sv_a"))
    tree.want(tree.entry("sv_a", "--version", "2"))
    new = tree.running("sv_a", but=old)
    assert b"--version\x002\x00" in Path(f"/proc/{new}/cmdline").read_bytes()
    started = wait_for(lambda: len(e := tree.events("started", "sv_a")) == 2 and e)[1][0]
    assert tree.events("stopped", "sv_a")[0][0] <= started
    assert tree.child("sv_a")["restarts"] == 0


def test_a_broken_file_leaves_everything_as_it_is(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a"))
    pid = tree.running("sv_a")
    (tree.dir / "processes.json").write_text('{"servers": [')
    wait_for(lambda: tree.state()["problems"])
    assert tree.running("sv_a") == pid
    tree.want(tree.entry("sv_a"), {"id": "../../etc", "argv": ["true"]}, tree.entry("control"))
    wait_for(lambda: len(tree.state()["problems"]) == 2)
    assert tree.running("sv_a") == pid
    assert len(tree.state()["children"]) == 4


def test_connections_wait_for_the_next_gateway(tree: Tree) -> None:
    tree.start(gateway_0=["--delay", "0.5"])
    old = tree.running("gateway-0")
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: gone(old))
    assert tree.ask() == tree.running("gateway-0", but=old)


def test_children_of_a_killed_supervisor_end_and_the_next_one_takes_over(tree: Tree) -> None:
    port = free_port()
    tree.start(port=port, control=["--linger", "0.7"])
    tree.want(tree.entry("sv_a"))
    tree.running("sv_a")
    wait_for(lambda: tree.events("started", "sv_a"))
    first = tree.pids()
    tree.stop(signal.SIGKILL)
    assert tree.process
    tree.process.communicate()
    tree.start(port=port)
    assert gone(*first)
    assert tree.port == port
    tree.running("sv_a")
    # Two controls never ran at the same time: they would write to one database.
    ended, began = tree.events("stopped", "control")[0][0], tree.events("started", "control")[1][0]
    assert ended <= began


def test_one_supervisor_per_data_directory(tree: Tree) -> None:
    tree.start()
    first = tree.process
    assert first
    second = Tree.__new__(Tree)
    second.dir, second.run, second.journal = tree.dir, tree.run, tree.journal
    second.start(ready=False)
    assert second.process
    try:
        _, said = second.process.communicate(timeout=60)
    finally:
        second.process.terminate()
    assert said == f"loopline already serves {tree.dir} (pid {first.pid})\n"
    assert second.process.returncode == 1
    assert tree.ask() == tree.running("gateway-0")


def test_a_port_in_use_names_a_free_one() -> None:
    port = free_port()
    with bind("127.0.0.1", port):
        with pytest.raises(Conflict) as caught:
            bind("127.0.0.1", port)
        free = caught.value.details["free_port"]
        assert f"port {port} on 127.0.0.1 is in use" in caught.value.message
        assert f"--port {free}" in caught.value.message
        bind("127.0.0.1", free).close()


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_it_stops_in_order_and_leaves_jobs_alone(tree: Tree) -> None:
    tree.start(control=["--spawn", "session"], gateway_0=["--linger", "0.3"])
    tree.want(tree.entry("sv_a", "--linger", "0.2"), forkservers=(tree.entry("fs_a"),))
    tree.running("sv_a"), tree.running("fs_a")
    for name in ("sv_a", "fs_a", "monitor"):
        wait_for(lambda name=name: tree.events("started", name))
    job = tree.events("spawned", "control")[0][3]
    assert tree.stop() == 0
    at = {(row[1], row[2]): row[0] for row in tree.events()}
    assert at["stopped", "gateway-0"] <= at["asked", "sv_a"]
    assert at["stopped", "gateway-0"] <= at["asked", "monitor"]
    assert max(at["stopped", "sv_a"], at["stopped", "monitor"]) <= at["asked", "control"]
    assert at["stopped", "control"] <= at["asked", "fs_a"]
    assert gone(*(tree.pids() - {job}))
    assert not gone(job)
    os.kill(job, signal.SIGKILL)
    with pytest.raises(ConnectionRefusedError):
        tree.ask()
    assert not (tree.run / "supervisor.json").exists()


def test_a_second_signal_ends_the_waiting(tree: Tree) -> None:
    tree.start(drain=600.0, gateway_0=["--stubborn"], control=["--stubborn"])
    assert tree.process
    tree.process.send_signal(signal.SIGINT)
    wait_for(lambda: tree.events("ignored", "gateway-0"))
    assert tree.stop(signal.SIGINT) == 0


def test_an_idle_forkserver_comes_back_only_when_it_is_asked_for(tree: Tree) -> None:
    tree.start()
    tree.want(forkservers=(tree.entry("fs_a", "--exit", "0"),))
    wait_for(lambda: tree.child("fs_a").get("state") == "ended")
    tree.want(tree.entry("sv_a"), forkservers=(tree.entry("fs_a", "--exit", "0"),))
    tree.running("sv_a")
    assert len(tree.events("started", "fs_a")) == 1
    tree.tell({"kind": "start", "id": "fs_a"})
    wait_for(lambda: len(tree.events("started", "fs_a")) == 2)


def test_datagrams_that_make_no_sense_are_ignored(tree: Tree) -> None:
    tree.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for raw in (b"", b"\xff", b"[]", b"3", b'{"kind": []}', b'{"kind": "start"}', b"[" * 60000):
            sender.sendto(raw, str(tree.run / "supervisor.sock"))
    tree.want(tree.entry("sv_a"))
    tree.running("sv_a")


def test_every_change_is_told_by_a_wake(tree: Tree) -> None:
    tree.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
        wake.bind(str(tree.run / "wake.sock"))
        wake.settimeout(60)
        tree.want(tree.entry("sv_a"))
        assert json.loads(wake.recv(4096)) == {"kind": "supervisor"}


def test_a_log_that_grows_big_is_cut_while_its_process_runs(tree: Tree) -> None:
    tree.start()
    tree.want(tree.entry("sv_a", "--write", str(110_000)))
    wait_for(lambda: tree.events("written", "sv_a"))
    log = tree.dir / "logs" / "sv_a.log"
    kept = log.with_name("sv_a.log.1")
    wait_for(lambda: kept.exists() and log.stat().st_size < 10 * 1000 * 1000)
    assert 0 < kept.stat().st_size <= 10 * 1000 * 1000
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert tree.child("sv_a")["restarts"] == 0


def test_its_own_programs_get_the_settings_that_it_has(tmp_path: Path) -> None:
    settings = load(environ={}, dir=str(tmp_path), port=0, gateways=2, allowed_hosts="a.example,b.example")
    table = {spec.id: spec for spec in programs(settings, 7, 4321)}
    assert list(table) == ["control", "gateway-0", "gateway-1", "monitor"]
    assert table["control"].argv == (sys.executable, "-m", "loopline.server", "--dir", str(tmp_path))
    assert table["gateway-1"].argv[-4:] == ("--index", "1", "--listen-fd", "7")
    assert (table["gateway-1"].fds, table["control"].fds) == ((7,), ())
    loaded = load(environ=table["control"].environ, dir=str(tmp_path))
    assert loaded == load(environ={}, dir=str(tmp_path), port=4321, gateways=2, allowed_hosts="a.example,b.example")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "models.example"])
def test_the_port_may_not_face_other_machines_in_the_clear(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidInput, match=r"--tls local.*behind_proxy"):
        run(load(environ={}, dir=str(tmp_path / "data"), host=host))
    assert not (tmp_path / "data").exists()
    check(load(environ={}, dir=str(tmp_path), host=host, tls="local"))
    check(load(environ={}, dir=str(tmp_path), host=host, behind_proxy="trusted"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_this_machine_it_may_speak_http(tmp_path: Path, host: str) -> None:
    check(load(environ={}, dir=str(tmp_path), host=host))


def test_a_certificate_that_is_none_is_told_before_anything_starts(tmp_path: Path) -> None:
    given = {"tls_certificate": str(tmp_path / "a.pem"), "tls_key": str(tmp_path / "a.key")}
    with pytest.raises(InvalidInput, match=r"a\.pem.*a\.key.*No such file"):
        run(load(environ={}, dir=str(tmp_path / "data"), **given))


def test_the_supervisor_is_small(tree: Tree) -> None:
    tree.start()
    assert tree.process
    status = Path(f"/proc/{tree.process.pid}/status").read_text()
    rss_kb = int(status.split("VmRSS:")[1].split()[0])
    assert rss_kb < 40_000
    assert "Threads:\t1\n" in status
