"""The forkserver: what it forks is fresh, and what it cannot fork safely it refuses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.compute import JobSpec
from loopline.compute import subprocess as subprocess_backend
from loopline.compute.subprocess import RUNTIME, SubprocessBackend
from loopline.runtime import processes
from loopline.runtime.forkserver import SPARES
from loopline.testing.compute_contract import read_log, wait_for, wait_for_exit

Start = Callable[..., dict[str, Any]]


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A runtime of the test's own, whose job.py prints what the test asks for."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in ("folder", "forkserver", "launch", "processes", "sandbox", "shim", "watch"):
        shutil.copy(RUNTIME / f"{name}.py", folder)
    source = "import json\ndef main(folder):\n    exec(json.load(open(folder + '/spec.json'))['call']['source'], {})\n"
    (folder / "job.py").write_text(source + "def prepare():\n    pass\n")
    return folder


@pytest.fixture
def start(tmp_path: Path, runtime: Path) -> Iterator[Start]:
    """Starts a forkserver and returns what it says about itself; all end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "run" / "fork").mkdir(parents=True)

    def go(python: str = sys.executable, preload: str = "", idle: float = 60, **environ: str) -> dict[str, Any]:
        command = [python, "-I", str(runtime / "forkserver.py"), "--preload", preload, "--idle", str(idle)]
        command += ["--socket", str(tmp_path / "run" / "fork" / "warm.sock")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environ})
        started.append(process)
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(process.stdout.readline())
        return {**said, "process": process}

    yield go
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def backend(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> SubprocessBackend:
    monkeypatch.setattr(subprocess_backend, "FORK_SECONDS", 60.0)  # nothing goes around a forkserver that is slow
    return SubprocessBackend(tmp_path / "attempts", tmp_path / "run", runtime=runtime)


def ask(folder: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect(str(folder / "run" / "fork" / "warm.sock"))
        client.sendall(line)
        answer: dict[str, Any] = json.loads(client.recv(65536))
        return answer


def run(backend: SubprocessBackend, attempt: str, source: str, **fields: Any) -> str:
    backend.submit(JobSpec(attempt, 1, kind="step", call={"source": source}, warm="warm", **fields))
    ended = wait_for_exit(backend, attempt)
    assert ended.reason == "ok", read_log(backend, attempt)
    return read_log(backend, attempt).decode()


def test_two_jobs_draw_different_random_numbers(start: Start, backend: SubprocessBackend) -> None:
    said = start(preload="numpy.random")
    assert said["preloaded"] == ["numpy.random"]
    source = (
        "import sys\nassert 'numpy' in sys.modules\nimport random, numpy\nprint(random.random(), numpy.random.rand())"
    )
    drawn = [run(backend, f"at_{number}", source).split() for number in range(3)]
    assert len({pair[0] for pair in drawn}) == 3
    assert len({pair[1] for pair in drawn}) == 3
    assert not backend._started


def test_libraries_that_end_their_threads_at_a_fork_are_no_obstacle(
    start: Start, backend: SubprocessBackend, tmp_path: Path
) -> None:
    assert start(preload="numpy.linalg")["threads"] == 1
    source = "import numpy\nprint(numpy.linalg.norm(numpy.ones((300, 300)) @ numpy.ones((300, 300))))"
    assert float(run(backend, "at_blas", source)) == pytest.approx(300.0**2)
    assert ask(tmp_path, b'{"status": true}\n')["threads"] == 1


def test_it_refuses_while_threads_exist_and_the_job_runs_in_an_interpreter_of_its_own(
    start: Start, runtime: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    python = str(tmp_path / "env" / "bin" / "python")
    assert start(python, preload="threaded")["threads"] == 2
    backend = SubprocessBackend(tmp_path / "attempts", tmp_path / "run", runtime=runtime)
    assert run(backend, "at_alone", "import sys; print('threaded' in sys.modules)", python=python) == "False\n"
    answer = ask(tmp_path, json.dumps({"folder": str(tmp_path / "attempts" / "at_alone")}).encode() + b"\n")
    assert "threads" in answer["refused"]


def test_a_package_that_cannot_be_imported_is_told_and_stops_nothing(start: Start, backend: SubprocessBackend) -> None:
    said = start(preload="no_such_package,json")
    assert said["preloaded"] == ["json"]
    assert "ModuleNotFoundError" in said["failed"]["no_such_package"]
    assert run(backend, "at_fine", "print('fine')") == "fine\n"


def test_a_job_looks_like_one_that_was_started_for_it(start: Start, backend: SubprocessBackend, tmp_path: Path) -> None:
    start(LOOPLINE_SECRET="hunter2")
    source = """
import gc, os, signal, sys, tempfile, threading
print(open('/proc/self/environ').read().strip(chr(0)))
print(dict(os.environ))
print(os.getcwd() == os.environ['HOME'], tempfile.gettempdir() == os.environ['TMPDIR'], gc.isenabled())
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)
print(sorted(os.listdir('/proc/self/fd')), hasattr(sys.modules['__main__'], '__file__'), threading.active_count())
"""
    lines = run(backend, "at_fresh", source, environ={"OWN": "value"}).splitlines()
    assert lines[0] == "LOOPLINE_ATTEMPT=at_fresh"
    assert "'OWN': 'value'" in lines[1] and "hunter2" not in lines[1]
    assert lines[2:4] == ["True True True", "True True"]
    # 0 to 2, the report to the shim, and the listing itself
    assert lines[4] == "['0', '1', '2', '3', '4'] False 1"


def test_what_a_job_changes_does_not_reach_the_next_one(start: Start, backend: SubprocessBackend) -> None:
    start(preload="decimal")
    run(backend, "at_first", "import decimal, os, sys; decimal.mark = 1; os.environ['X'] = '1'; sys.path.append('/x')")
    source = "import decimal, os, sys; print(hasattr(decimal, 'mark'), 'X' in os.environ, '/x' in sys.path)"
    assert run(backend, "at_second", source) == "False False False\n"


def test_a_job_outlives_its_forkserver(start: Start, backend: SubprocessBackend) -> None:
    process = start()["process"]
    source = "import os, time\nprint('up')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('done')"
    backend.submit(JobSpec("at_long", 1, kind="step", call={"source": source}, warm="warm"))
    wait_for(lambda: backend.logs("at_long").data, "the job's first line")
    process.kill()
    process.wait()
    (backend.attempts_dir / "at_long" / "work" / "go").touch()
    assert wait_for_exit(backend, "at_long").reason == "ok"
    assert run(backend, "at_next", "print('plain')") == "plain\n"


def test_exit_functions_and_threads_of_a_job_are_waited_for(start: Start, backend: SubprocessBackend) -> None:
    start()
    source = """
import atexit, threading, time
atexit.register(lambda: print('exit function'))
threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()
"""
    assert run(backend, "at_tail", source) == "thread\nexit function\n"


def test_a_variable_that_only_an_interpreter_start_reads_goes_around_it(
    start: Start, backend: SubprocessBackend
) -> None:
    start(preload="decimal")
    source = "import sys; print('decimal' in sys.modules)"
    assert run(backend, "at_warm", source) == "True\n"
    assert run(backend, "at_cold", source, environ={"OMP_NUM_THREADS": "1"}) == "False\n"


def test_it_ends_when_idle_and_takes_its_socket_away(start: Start, tmp_path: Path) -> None:
    process = start(idle=0.3)["process"]
    assert process.wait(60) == 0
    assert list((tmp_path / "run" / "fork").iterdir()) == []


def test_its_socket_is_private_and_no_zombies_stay(start: Start, backend: SubprocessBackend, tmp_path: Path) -> None:
    pid = start()["pid"]
    assert (tmp_path / "run" / "fork" / "warm.sock").stat().st_mode & 0o777 == 0o600
    for number in range(3):
        run(backend, f"at_{number}", "pass")
    # What is left are the shims that wait for the next requests.
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_for(lambda: len(children.read_text().split()) == SPARES, "the end of its children")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"nonsense\n", b'{"folder": "../x"}\n', b'{"folder": "/tmp"}\n', b'{"folder": 7}\n', b"{}\n"],
)
def test_a_request_that_is_none_is_refused_and_the_next_one_is_served(
    start: Start, backend: SubprocessBackend, tmp_path: Path, line: bytes
) -> None:
    start()
    assert set(ask(tmp_path, line)) == {"refused"}
    assert run(backend, "at_fine", "print('fine')") == "fine\n"


def test_a_silent_client_is_not_waited_for_long(start: Start, tmp_path: Path) -> None:
    start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect(str(tmp_path / "run" / "fork" / "warm.sock"))
        assert "pid" in ask(tmp_path, b'{"status": true}\n')


def test_shims_that_wait_end_with_the_forkserver_and_are_replaced_when_they_were_killed(
    start: Start, backend: SubprocessBackend
) -> None:
    said = start()

    def spares() -> list[int] | None:
        """The children, then the only child of each; a shim that is about to end has none."""
        shims = processes.children(said["pid"])
        jobs = [job for shim in shims for job in processes.children(shim)]
        return [*shims, *jobs] if len(shims) == len(jobs) == SPARES else None

    first = wait_for(spares, "the waiting shims")[:SPARES]
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in first), "their end")
    assert run(backend, "at_direct", "print('direct')") == "direct\n"
    assert not backend._started
    following = wait_for(spares, "the next ones")
    assert not set(first) & set(following)
    said["process"].kill()
    said["process"].wait()
    for pid in following:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the end of what waits")


def test_many_askers_at_once_are_all_served(start: Start, backend: SubprocessBackend) -> None:
    start()
    said: dict[int, str] = {}

    def go(number: int) -> None:
        said[number] = run(backend, f"at_{number}", f"print({number})")

    threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: f"{number}\n" for number in range(8)}
