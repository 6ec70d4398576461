"""Reading /proc: who is alive, who belongs together, and who is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.runtime import processes
from loopline.testing.compute_contract import wait_for


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["/bin/sleep", "600"], env={processes.MARK: "at_proc"}, start_new_session=True) as process:
        wait_for(lambda: processes.carries_mark(process.pid, "at_proc"), "the exec")
        yield process
        process.kill()


def test_a_process_is_alive_under_its_pid_and_start_time_only(sleeper: "subprocess.Popen[bytes]") -> None:
    started = processes.start_time(sleeper.pid)
    assert processes.alive(sleeper.pid, started)
    assert not processes.alive(sleeper.pid, started - 1)
    sleeper.kill()
    wait_for(lambda: not processes.alive(sleeper.pid, started), "a zombie that counts as dead")
    sleeper.wait()
    assert processes.stat(sleeper.pid) is None and processes.start_time(sleeper.pid) == 0


def test_a_name_with_spaces_and_parentheses_does_not_shift_the_fields(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as process:
        found = wait_for(lambda: processes.stat(process.pid), "the process")
        assert (found.parent, found.state in "SRD") == (os.getpid(), True)
        process.kill()


def test_descendants_are_found_at_any_depth_by_either_way() -> None:
    with subprocess.Popen(["/bin/sh", "-c", "sh -c 'sleep 600 & wait' & wait"], start_new_session=True) as process:
        found = wait_for(lambda: len(b := processes.descendants(process.pid)) == 2 and b, "both children")
        assert sorted(found) == sorted(processes._descendants_by_parent(process.pid))
        os.killpg(process.pid, signal.SIGKILL)


def test_a_mark_is_compared_whole(sleeper: "subprocess.Popen[bytes]") -> None:
    assert not processes.carries_mark(sleeper.pid, "at_pro")
    assert not processes.carries_mark(sleeper.pid, "at_proc2")
    assert list(processes.marked("at_proc")) == [sleeper.pid]


def test_what_is_left_of_an_attempt_is_killed_and_nothing_else(sleeper: "subprocess.Popen[bytes]") -> None:
    unmarked = subprocess.Popen(["/bin/sh", "-c", "sleep 600 & wait"], start_new_session=True, env={})
    other = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True, env={processes.MARK: "at_other"})
    try:
        wait_for(lambda: processes.children(unmarked.pid), "the child")
        group = (unmarked.pid, processes.start_time(unmarked.pid))
        assert processes.kill_marked("at_proc", group) == 3
        assert (sleeper.wait(60), unmarked.wait(60)) == (-9, -9)
        assert other.poll() is None
        assert processes.kill_marked("at_proc", group) == 0
    finally:
        for process in (unmarked, other):
            process.kill()
            process.wait()


def test_a_group_whose_pid_was_used_again_is_spared(sleeper: "subprocess.Popen[bytes]") -> None:
    later = (sleeper.pid, processes.start_time(sleeper.pid) - 1)
    assert processes.kill_marked("at_nobody", later) == 0
    assert sleeper.poll() is None


def test_shared_memory_is_divided_and_resident_memory_is_not() -> None:
    script = "import os, time; block = bytearray(b'x' * 50_000_000); os.fork() or os.fork(); print(1, flush=True)\n"
    command = [sys.executable, "-S", "-c", script + "time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        pids = [process.pid, *processes.descendants(process.pid)]
        assert len(pids) == 3
        assert processes.resident_bytes(pids) > 150_000_000
        assert 50_000_000 < processes.proportional_bytes(pids) < 100_000_000
        os.killpg(process.pid, signal.SIGKILL)


def test_a_mark_that_does_not_fit_is_not_written() -> None:
    before = Path("/proc/self/environ").read_bytes()
    assert not processes.overwrite_environ(b"x" * (len(before) + 1))
    assert Path("/proc/self/environ").read_bytes() == before


def test_a_family_that_forks_without_end_is_ended() -> None:
    """In a process of its own, because it adopts orphans. The bomb grows to at most 60 and keeps renewing itself."""
    script = """
import os, sys, time
from loopline.runtime import processes, sandbox
sandbox.adopt_orphans()
main = os.fork()
if main == 0:
    os.setsid()
    while True:  # each generation forks the next and dies
        if os.fork() and os.fork(): time.sleep(0.001); os._exit(0)
        if len(processes.all_pids()) > %d: time.sleep(0.05)
time.sleep(0.3)
family = processes.Family(main)
family.end()
print(family.status is not None, processes.descendants(os.getpid()))
"""
    limit = len(processes.all_pids()) + 60
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script % limit],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": path},
        check=False,
    )
    assert done.stdout.split("\n")[0] == "True []", done.stderr


def test_the_boot_has_a_name() -> None:
    assert len(processes.boot_id()) == 36
    assert processes.start_time(os.getpid()) > 0


def test_gathering_pages_changes_no_byte_of_them() -> None:
    script = """
import hashlib, os
from loopline.runtime import processes
blocks = [bytes([number % 251]) * 300_001 for number in range(60)]
before = hashlib.sha256(b"".join(blocks)).hexdigest()
moved = processes.gather_pages()
print(before == hashlib.sha256(b"".join(blocks)).hexdigest(), moved >= 0)
pid = os.fork()
if pid == 0: os._exit(before != hashlib.sha256(b"".join(blocks)).hexdigest())
print(os.waitpid(pid, 0)[1])
"""
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.check_output([sys.executable, "-c", script], text=True, timeout=120, env=environ)
    assert said.split() == ["True", "True", "0"]
