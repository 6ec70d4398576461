"""The subprocess backend, bare, warm and wrapped, against the contract of the port."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopline.compute import ComputeBackend, JobSpec, LogChunk, Status
from loopline.compute import subprocess as subprocess_backend
from loopline.compute.subprocess import RUNTIME, SubprocessBackend
from loopline.testing.compute_contract import ComputeContract


class TestBare(ComputeContract):
    def make_backend(self, folder: Path) -> ComputeBackend:
        return SubprocessBackend(folder / "attempts", folder / "run")


class Wrapper:
    """Passes everything on, as a backend that counts or logs would."""

    def __init__(self, inner: ComputeBackend) -> None:
        self.inner = inner

    def submit(self, spec: JobSpec) -> None:
        self.inner.submit(spec)

    def poll(self, attempt: str) -> Status:
        return self.inner.poll(attempt)

    def stop(self, attempt: str, grace_seconds: float = 5.0) -> None:
        self.inner.stop(attempt, grace_seconds)

    def logs(self, attempt: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        return self.inner.logs(attempt, offset, limit)


class TestWrapped(ComputeContract):
    def make_backend(self, folder: Path) -> ComputeBackend:
        return Wrapper(SubprocessBackend(folder / "attempts", folder / "run"))


class Warm:
    """Sends every job through the forkserver "warm", and counts the jobs that did not go through it."""

    def __init__(self, inner: SubprocessBackend) -> None:
        self.inner = inner

    def submit(self, spec: JobSpec) -> None:
        from dataclasses import replace

        self.inner.submit(replace(spec, warm="warm"))
        assert not self.inner._started, "a job went around the forkserver"

    def poll(self, attempt: str) -> Status:
        return self.inner.poll(attempt)

    def stop(self, attempt: str, grace_seconds: float = 5.0) -> None:
        self.inner.stop(attempt, grace_seconds)

    def logs(self, attempt: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        return self.inner.logs(attempt, offset, limit)


class TestWarm(ComputeContract):
    @pytest.fixture(autouse=True)
    def forkserver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(subprocess_backend, "FORK_SECONDS", 60.0)  # nothing goes around a forkserver that is slow
        (tmp_path / "run" / "fork").mkdir(parents=True)
        command = [sys.executable, "-I", str(RUNTIME / "forkserver.py"), "--idle", "60"]
        command += ["--socket", str(tmp_path / "run" / "fork" / "warm.sock")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and b'"pid"' in process.stdout.readline()
            yield
            process.terminate()

    def make_backend(self, folder: Path) -> ComputeBackend:
        return Warm(SubprocessBackend(folder / "attempts", folder / "run"))
