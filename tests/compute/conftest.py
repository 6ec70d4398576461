"""Backends of a test's own, and the certainty that no test leaves a process behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopline.compute.subprocess import RUNTIME, SubprocessBackend
from loopline.runtime import processes

OWN_FILES = ("confined", "folder", "forkserver", "launch", "processes", "sandbox", "shim", "watch")


@pytest.fixture(autouse=True)
def _no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 30  # a shim that has written `exit` still has to end itself
    while (left := _left(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind"


def _left(folder: Path) -> list[int]:
    return [pid for attempt in (folder / "attempts").glob("*") for pid in processes.marked(attempt.name)]


@pytest.fixture
def backend(tmp_path: Path) -> SubprocessBackend:
    return SubprocessBackend(tmp_path / "attempts", tmp_path / "run")


@pytest.fixture
def with_job(tmp_path: Path) -> Callable[[str], SubprocessBackend]:
    """A backend whose runtime has this source as its job.py: for the kinds that are no commands."""

    def make(source: str) -> SubprocessBackend:
        runtime = tmp_path / "runtime"
        runtime.mkdir()
        for name in OWN_FILES:
            shutil.copy(RUNTIME / f"{name}.py", runtime)
        (runtime / "job.py").write_text(source + "\ndef prepare():\n    pass\n")
        return SubprocessBackend(tmp_path / "attempts", tmp_path / "run", runtime=runtime)

    return make


@pytest.fixture
def start_forkserver(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Starts forkservers on run/fork/warm.sock; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "run" / "fork").mkdir(parents=True)

    def start(
        runtime: Path = RUNTIME, python: str = sys.executable, preload: str = "", idle: float = 60.0
    ) -> "subprocess.Popen[bytes]":
        command = [python, "-I", str(runtime / "forkserver.py"), "--preload", preload, "--idle", str(idle)]
        command += ["--socket", str(tmp_path / "run" / "fork" / "warm.sock")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
