"""Jobs that misbehave, and shims that die: what remains is always an answer, and never a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopline.compute import JobSpec, Limits, Sandbox
from loopline.compute.subprocess import RUNTIME, SubprocessBackend
from loopline.runtime import processes, sandbox
from loopline.testing.compute_contract import read_log, shell, wait_for, wait_for_end, wait_for_exit

needs_landlock = pytest.mark.skipif(sandbox.landlock_abi() < 1, reason="this kernel has no Landlock")


def python(attempt: str, script: str, **fields: object) -> JobSpec:
    return JobSpec(attempt, 1, argv=(sys.executable, "-S", "-c", script), **fields)  # type: ignore[arg-type]


def work(backend: SubprocessBackend, attempt: str, name: str) -> Path:
    return backend.attempts_dir / attempt / "work" / name


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def claim_of(backend: SubprocessBackend, attempt: str) -> int:
    path = backend.attempts_dir / attempt / "claim"
    wait_for(path.exists, "the claim")
    return int(json.loads(path.read_text())["pid"])


def group_of(backend: SubprocessBackend, attempt: str) -> dict[str, int]:
    """The job's own process, which may speak before its shim has written down who it is."""
    path = backend.attempts_dir / attempt / "group"
    wait_for(path.exists, "the group")
    return dict(json.loads(path.read_text()))


def gone(pid: int) -> bool:
    found = processes.stat(pid)
    return found is None or found.state in "ZX"


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("pids", "a").write(f"{os.getpid()}\\n")
        for number in range(3): os.close(number)
        os.execve("/bin/sleep", ["sleep", "600"], %s)
    os._exit(0)
while not os.path.exists("pids") or not open("pids").read(): time.sleep(0.01)
%s
"""


@pytest.mark.parametrize("environ", ["{}", "dict(os.environ)"], ids=["bare", "marked"])
def test_a_daemon_in_a_session_of_its_own_dies_with_its_job(backend: SubprocessBackend, environ: str) -> None:
    backend.submit(python("at_daemon", DAEMON % (environ, "")))
    assert wait_for_exit(backend, "at_daemon").reason == "ok"
    (pid,) = pids_in(work(backend, "at_daemon", "pids"))
    assert gone(pid)


def test_a_killed_job_is_an_error_with_its_signal(backend: SubprocessBackend) -> None:
    backend.submit(shell("at_killed", "echo up; sleep 600"))
    wait_for(lambda: backend.logs("at_killed").data, "the job's first line")
    group = group_of(backend, "at_killed")
    assert processes.alive(group["pid"], group["start_time"])
    os.kill(group["pid"], signal.SIGKILL)
    ended = wait_for_exit(backend, "at_killed")
    assert (ended.reason, ended.code, ended.signal) == ("error", None, 9)


def test_a_killed_shim_takes_its_job_along_and_the_attempt_is_lost(backend: SubprocessBackend) -> None:
    backend.submit(python("at_orphan", DAEMON % ("dict(os.environ)", "print('up', flush=True); time.sleep(600)")))
    wait_for(lambda: backend.logs("at_orphan").data, "the job's first line")
    group = group_of(backend, "at_orphan")
    (daemon,) = pids_in(work(backend, "at_orphan", "pids"))
    os.kill(claim_of(backend, "at_orphan"), signal.SIGKILL)
    wait_for(lambda: gone(group["pid"]), "the job's death")
    assert not gone(daemon)  # nobody is left to end it, until somebody asks
    status = wait_for_end(backend, "at_orphan")
    assert status.state == "lost" and "shim" in status.detail
    wait_for(lambda: gone(daemon), "the daemon's death")
    assert backend.poll("at_orphan").state == "lost"


def test_a_forked_child_without_exec_is_found_by_its_mark(
    with_job: Callable[[str], SubprocessBackend], start_forkserver: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    source = """
import os, time
def main(folder):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("pids", "w").write(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    time.sleep(600)
"""
    backend = with_job(source)
    process = start_forkserver(backend.runtime)
    assert process.stdout is not None and process.stdout.readline()
    backend.submit(JobSpec("at_forked", 1, kind="step", warm="warm"))
    pids = work(backend, "at_forked", "pids")
    (daemon,) = wait_for(lambda: pids_in(pids), "the daemon")
    os.kill(claim_of(backend, "at_forked"), signal.SIGKILL)
    assert wait_for_end(backend, "at_forked").state == "lost"
    wait_for(lambda: gone(daemon), "the daemon's death")


def test_of_racing_shims_one_runs_the_job(backend: SubprocessBackend) -> None:
    spec = shell("at_race", "echo ran; sleep 0.3")
    backend.submit(spec)
    folder = str(backend.attempts_dir / "at_race")
    shims = [subprocess.Popen([sys.executable, "-I", "-S", str(RUNTIME / "shim.py"), folder]) for _ in range(5)]
    assert wait_for_exit(backend, "at_race").reason == "ok"
    codes = [shim.wait(60) for shim in shims]
    assert codes.count(1) >= 4
    assert read_log(backend, "at_race") == b"ran\n"


def test_fifty_children_that_ignore_signals_are_all_ended(backend: SubprocessBackend) -> None:
    script = """
trap '' TERM HUP INT
i=0
while [ $i -lt 50 ]; do (while :; do sleep 0.2; done) & echo $! >> pids; i=$((i+1)); done
echo up; sleep 600
"""
    backend.submit(shell("at_many", script))
    wait_for(lambda: backend.logs("at_many").data, "the job's first line")
    backend.stop("at_many", grace_seconds=0.1)
    assert wait_for_exit(backend, "at_many").reason == "stopped"
    pids = pids_in(work(backend, "at_many", "pids"))
    assert len(pids) == 50 and all(gone(pid) for pid in pids)


def test_memory_of_all_processes_together_is_bounded(backend: SubprocessBackend) -> None:
    script = """
import os, time
for _ in range(2): os.fork()
hog = []
for _ in range(80):
    hog.append(bytearray(b"x" * 1048576)); time.sleep(0.005)
time.sleep(600)
"""
    backend.submit(python("at_hog", script, limits=Limits(memory_mb=150)))
    ended = wait_for_exit(backend, "at_hog")
    assert ended.reason == "memory" and ended.signal == 9
    assert 150 * 1048576 < ended.max_rss_bytes < 400 * 1048576
    assert ended.error is not None and "150 MB" in ended.error.message


def test_one_huge_allocation_is_a_memory_error(with_job: Callable[[str], SubprocessBackend]) -> None:
    backend = with_job("def main(folder):\n    return len(bytearray(8 << 30))\n")
    backend.submit(JobSpec("at_huge", 1, kind="step", limits=Limits(memory_mb=100)))
    ended = wait_for_exit(backend, "at_huge")
    assert ended.reason == "memory"
    assert ended.error is not None and ended.error.type == "MemoryError"


def test_a_flood_of_output_is_cut_exactly_and_the_job_goes_on(backend: SubprocessBackend) -> None:
    script = """
import os, time
block = b"0123456789abcde\\n" * 65536
for _ in range(200): os.write(1, block)
open("done", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
"""
    backend.submit(python("at_flood", script, limits=Limits(log_mb=1)))
    shim = claim_of(backend, "at_flood")
    wait_for(work(backend, "at_flood", "done").exists, "the end of the flood")
    peak_kb = int(Path(f"/proc/{shim}/status").read_text().split("VmHWM:")[1].split()[0])
    work(backend, "at_flood", "go").touch()
    assert wait_for_exit(backend, "at_flood").reason == "ok"
    log = (backend.attempts_dir / "at_flood" / "log").read_bytes()
    assert log[:1048576] == b"0123456789abcde\n" * 65536
    assert log[1048576:] == b"[loopline] the log is cut here at 1 MB; the job goes on\n"
    assert 0 < peak_kb < 40_000


def test_output_of_exactly_the_cap_is_not_said_to_be_cut(backend: SubprocessBackend) -> None:
    backend.submit(python("at_fit", "print('x' * 1048575)", limits=Limits(log_mb=1)))
    assert wait_for_exit(backend, "at_fit").reason == "ok"
    assert len(read_log(backend, "at_fit")) == 1048576


@pytest.mark.parametrize("megabytes", [1, 5], ids=["many files", "one file"])
def test_a_job_that_fills_the_disk_is_ended(backend: SubprocessBackend, megabytes: int) -> None:
    script = f"""
import itertools, time
for number in itertools.count():
    open(f"f{{number}}", "wb").write(b"x" * {megabytes} * 1048576)
    time.sleep(0.05)
"""
    backend.submit(python("at_disk", script, limits=Limits(disk_mb=4)))
    ended = wait_for_exit(backend, "at_disk")
    assert ended.reason == "disk" and ended.error is not None and "4 MB" in ended.error.message
    # One file that is too large fails inside the job; many are noticed by the shim.
    assert (b"File too large" in read_log(backend, "at_disk")) == (megabytes > 4)


@pytest.mark.parametrize("name", ["ENOSPC", "EFBIG", "EDQUOT"])
def test_a_full_disk_inside_a_step_is_told_apart(with_job: Callable[[str], SubprocessBackend], name: str) -> None:
    backend = with_job(f"import errno\ndef main(folder):\n    raise OSError(errno.{name}, 'no room', 'f')\n")
    backend.submit(JobSpec("at_full", 1, kind="step"))
    ended = wait_for_exit(backend, "at_full")
    assert ended.reason == "disk" and ended.error is not None and ended.error.type == "OSError"


def test_processor_time_is_bounded(backend: SubprocessBackend) -> None:
    backend.submit(python("at_cpu", "while True: pass", limits=Limits(cpu_seconds=1, timeout_seconds=300)))
    ended = wait_for_exit(backend, "at_cpu")
    assert ended.reason == "cpu" and ended.signal == signal.SIGXCPU
    assert 0.5 < ended.cpu_seconds < 4


def test_an_exception_in_a_step_is_told_with_its_place(
    with_job: Callable[[str], SubprocessBackend], tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "user_code.py").write_text("def go():\n    return {}['absent']\n")
    source = "import sys\ndef main(folder):\n    sys.path.insert(0, %r)\n    import user_code\n    user_code.go()\n"
    backend = with_job(source % str(tmp_path / "project"))
    backend.submit(JobSpec("at_raise", 1, kind="step", sandbox=Sandbox(read=(str(tmp_path / "project"),))))
    ended = wait_for_exit(backend, "at_raise")
    assert (ended.reason, ended.code) == ("error", 1)
    assert ended.error is not None
    assert (ended.error.type, ended.error.message, ended.error.line) == ("KeyError", "'absent'", 2)
    assert ended.error.file == str(tmp_path / "project" / "user_code.py")
    assert b"KeyError: 'absent'" in read_log(backend, "at_raise")


@needs_landlock
def test_a_job_reads_and_writes_only_what_it_was_given(backend: SubprocessBackend, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "data").write_text("data")
    (tmp_path / "share").mkdir()
    script = f"""
import os
def attempt(what, *arguments):
    try: return what(*arguments) or "done"
    except PermissionError: return "denied"
write = lambda path: open(path, "w").write("x") and "written"
read = lambda path: open(path).read()
base = {str(tmp_path)!r}
own = base + "/attempts/at_box"
print(attempt(read, base + "/secret"), attempt(write, base + "/new"), attempt(read, base + "/input/data"),
      attempt(write, base + "/input/data"), attempt(write, base + "/share/f"), attempt(write, "here"),
      attempt(write, own + "/outputs/f"), attempt(write, own + "/events"), attempt(write, os.environ["TMPDIR"] + "/f"),
      attempt(write, own + "/exit"), attempt(write, own + "/claim"),
      attempt(os.rename, own + "/outputs/f", own + "/exit"),
      attempt(write, "/dev/null"), attempt(os.listdir, base), attempt(write, "/etc/loopline-test"))
"""
    confinement = Sandbox(read=(str(tmp_path / "input"),), write=(str(tmp_path / "share"),))
    backend.submit(python("at_box", script, sandbox=confinement))
    ended = wait_for_exit(backend, "at_box")
    assert ended.reason == "ok", read_log(backend, "at_box")
    said = read_log(backend, "at_box").decode().split()
    assert said == ["denied", "denied", "data", "denied", *["written"] * 5, *["denied"] * 3, "written", *["denied"] * 2]
    assert {"rlimits", "no_new_privs", "landlock_files"} <= set(ended.layers)


@pytest.mark.skipif(sandbox.landlock_abi() < 4, reason="this kernel's Landlock does not know TCP")
@pytest.mark.parametrize("network", [True, False])
def test_a_job_without_network_makes_no_connection(backend: SubprocessBackend, network: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"""
import socket
try: socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 5); print("connected")
except PermissionError: print("denied")
"""
        backend.submit(python("at_net", script, sandbox=Sandbox(network=network)))
        assert wait_for_exit(backend, "at_net").reason == "ok"
    assert read_log(backend, "at_net") == (b"connected\n" if network else b"denied\n")


@pytest.mark.skipif(sandbox.landlock_abi() < 6, reason="this kernel's Landlock does not know signals")
def test_a_job_cannot_signal_its_shim(backend: SubprocessBackend) -> None:
    script = "import os\ntry: os.kill(os.getppid(), 9)\nexcept PermissionError: print('denied')"
    backend.submit(python("at_shoot", script))
    assert wait_for_exit(backend, "at_shoot").reason == "ok"
    assert read_log(backend, "at_shoot") == b"denied\n"


def test_a_job_inherits_neither_descriptors_nor_environment(
    backend: SubprocessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPLINE_SECRET", "hunter2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        script = "import os; print(sorted(os.listdir('/proc/self/fd')), open('/proc/self/environ').read(), os.umask(0))"
        backend.submit(python("at_clean", script))
        assert wait_for_exit(backend, "at_clean").reason == "ok"
    said = read_log(backend, "at_clean").decode()
    assert "hunter2" not in said
    assert said.startswith("['0', '1', '2', '3']")  # 3 is the listing's own
    assert said.rstrip().endswith(str(0o077))


@pytest.mark.parametrize("content", [b"", b'{"code": 0, "rea', b"[]", b'{"reason":"fine"}', b"\xff\xfe"])
def test_an_exit_that_cannot_be_read_is_a_lost_attempt(backend: SubprocessBackend, content: bytes) -> None:
    backend.submit(shell("at_torn", "exit 0"))
    wait_for_exit(backend, "at_torn")
    (backend.attempts_dir / "at_torn" / "exit").write_bytes(content)
    status = wait_for_end(backend, "at_torn")
    assert status.state == "lost" and "cannot be read" in status.detail
    assert [status.state for status in backend.recover()] == ["lost"]


def test_an_exit_of_another_token_does_not_count(backend: SubprocessBackend) -> None:
    backend.submit(shell("at_token", "exit 0", token=4))
    wait_for_exit(backend, "at_token")
    path = backend.attempts_dir / "at_token" / "exit"
    path.write_text(json.dumps({**json.loads(path.read_text()), "token": 3}))
    assert wait_for_end(backend, "at_token").state == "lost"


def written_but_not_started(backend: SubprocessBackend, spec: JobSpec) -> Path:
    folder = backend.attempts_dir / spec.attempt
    folder.mkdir()
    (folder / "work").mkdir()
    (folder / "spec.json").write_text(json.dumps(backend._written(spec, folder)))
    return folder


def test_an_attempt_nobody_claims_is_lost_and_a_late_shim_does_not_begin_it(backend: SubprocessBackend) -> None:
    folder = written_but_not_started(backend, shell("at_late", "echo ran"))
    assert backend.poll("at_late").state == "unclaimed"
    os.utime(folder / "spec.json", (time.time() - 60, time.time() - 60))
    assert backend.poll("at_late").state == "lost"
    shim = subprocess.run([sys.executable, "-I", "-S", str(RUNTIME / "shim.py"), str(folder)], timeout=60, check=False)
    assert shim.returncode == 1
    assert backend.poll("at_late").state == "lost"
    assert read_log(backend, "at_late") == b""


def test_a_submit_after_a_crash_in_the_last_one_starts_the_job(backend: SubprocessBackend) -> None:
    spec = shell("at_again", "echo ran")
    written_but_not_started(backend, spec)
    backend.submit(spec)
    assert wait_for_exit(backend, "at_again").reason == "ok"
    assert read_log(backend, "at_again") == b"ran\n"


def test_an_attempt_stopped_before_it_began_never_runs(backend: SubprocessBackend) -> None:
    spec = shell("at_early", "echo ran")
    written_but_not_started(backend, spec)
    backend.stop("at_early")
    backend.submit(spec)
    assert wait_for_exit(backend, "at_early").reason == "stopped"
    assert read_log(backend, "at_early") == b""


def test_a_claim_of_an_earlier_boot_is_lost(backend: SubprocessBackend) -> None:
    folder = written_but_not_started(backend, shell("at_boot", "exit 0"))
    claim = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": "another"}
    (folder / "claim").write_text(json.dumps(claim))
    assert backend.poll("at_boot").state == "lost"
    (folder / "claim").write_text(json.dumps({**claim, "boot_id": processes.boot_id()}))
    assert backend.poll("at_boot").state == "running"
    (folder / "claim").write_text(json.dumps({**claim, "boot_id": processes.boot_id(), "start_time": 1}))
    assert backend.poll("at_boot").state == "lost"


def test_a_new_backend_finds_the_attempts_of_the_last_one(backend: SubprocessBackend) -> None:
    backend.submit(shell("at_done", "exit 2"))
    wait_for_exit(backend, "at_done")
    backend.submit(shell("at_on", "echo up; sleep 600"))
    wait_for(lambda: backend.logs("at_on").data, "the job's first line")
    (backend.attempts_dir / "not-an-attempt").mkdir()
    (backend.attempts_dir / "at_empty").mkdir()
    successor = SubprocessBackend(backend.attempts_dir, backend.run_dir)
    assert [(status.attempt, status.state) for status in successor.recover()] == [
        ("at_done", "exited"),
        ("at_on", "running"),
    ]
    successor.stop("at_on", grace_seconds=1)
    assert wait_for_exit(successor, "at_on").reason == "stopped"
    wait_for_exit(backend, "at_on")


def test_a_missing_interpreter_is_a_launch_failure(backend: SubprocessBackend) -> None:
    backend.submit(JobSpec("at_nopython", 1, kind="step", python="/no/such/python"))
    ended = wait_for_exit(backend, "at_nopython")
    assert ended.reason == "launch" and ended.error is not None and "/no/such/python" in ended.error.message


def test_a_broken_interpreter_is_a_launch_failure_with_its_words(backend: SubprocessBackend, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho libpython is gone >&2\nexit 127\n")
    broken.chmod(0o755)
    backend.submit(JobSpec("at_broken", 1, kind="step", python=str(broken)))
    ended = wait_for_exit(backend, "at_broken")
    assert ended.reason == "launch" and ended.error is not None and "libpython is gone" in ended.error.message


def test_a_missing_workdir_is_a_launch_failure(backend: SubprocessBackend) -> None:
    backend.submit(JobSpec("at_nowhere", 1, argv=("/bin/true",), workdir="/no/such/folder"))
    ended = wait_for_exit(backend, "at_nowhere")
    assert ended.reason == "launch" and ended.error is not None and "/no/such/folder" in ended.error.message


def test_the_end_of_an_attempt_wakes_whoever_listens(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "run" / "wake.sock"))
        listener.settimeout(60)
        backend = SubprocessBackend(tmp_path / "attempts", tmp_path / "run")
        backend.submit(shell("at_wake", "exit 0"))
        assert json.loads(listener.recv(1000)) == {"kind": "attempt", "id": "at_wake"}
    assert backend.poll("at_wake").state == "exited"
    wait_for(lambda: gone(claim_of(backend, "at_wake")), "the shim's end")


def test_a_job_imports_loopline_from_the_importpath(with_job: Callable[[str], SubprocessBackend]) -> None:
    backend = with_job("def main(folder):\n    import loopline\n    print(loopline.__file__)\n")
    backend.submit(JobSpec("at_import", 1, kind="step"))
    assert wait_for_exit(backend, "at_import").reason == "ok", read_log(backend, "at_import")
    assert read_log(backend, "at_import").decode().strip() == str(backend.importpath / "loopline" / "__init__.py")


def test_an_attempt_whose_forked_shim_died_before_its_claim_is_lost_at_once(
    backend: SubprocessBackend, tmp_path: Path
) -> None:
    """A forkserver that is killed takes along the shim that it has just promised."""
    gone_soon = subprocess.Popen(["sleep", "600"])
    path = tmp_path / "run" / "fork" / "warm.sock"
    path.parent.mkdir(parents=True)

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()

    def promise() -> None:
        with listener:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(json.dumps({"pid": gone_soon.pid}).encode() + b"\n")

    answering = threading.Thread(target=promise)
    answering.start()
    backend.submit(JobSpec("at_promised", 1, kind="command", argv=("true",), warm="warm"))
    answering.join()
    assert backend.poll("at_promised").state == "unclaimed"
    gone_soon.kill()
    gone_soon.wait()
    assert backend.poll("at_promised").state == "lost"
    assert backend.poll("at_promised").state == "lost"
