"""What every ComputeBackend has to do: subclass ``ComputeContract`` in a test file, give it a backend, run pytest.

    class TestMyBackend(ComputeContract):
        def make_backend(self, folder): return MyBackend(folder)

Only the four verbs of the port are used, so a wrapper around a backend passes through the same tests.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopline.compute import ComputeBackend, Exit, JobSpec, Limits, Status
from loopline.errors import Conflict, InvalidInput, NotFound

DEADLINE_SECONDS = 60.0


def wait_for(ready: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Ask again until the answer is true, and return it; AssertionError after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ready()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)


def wait_for_end(backend: ComputeBackend, attempt: str, seconds: float = DEADLINE_SECONDS) -> Status:
    """The attempt's last status."""

    def ended() -> Status | None:
        status = backend.poll(attempt)
        return status if status.state in ("exited", "lost") else None

    found: Status = wait_for(ended, f"the end of {attempt}", seconds)
    return found


def wait_for_exit(backend: ComputeBackend, attempt: str, seconds: float = DEADLINE_SECONDS) -> Exit:
    """How the attempt ended; AssertionError when it was lost."""
    status = wait_for_end(backend, attempt, seconds)
    assert status.exit is not None, status
    return status.exit


def read_log(backend: ComputeBackend, attempt: str, limit: int = 65536) -> bytes:
    """The whole log so far, piece by piece."""
    parts: list[bytes] = []
    offset = 0
    while True:
        chunk = backend.logs(attempt, offset, limit)
        assert chunk.offset == offset
        assert chunk.next_offset == offset + len(chunk.data)
        assert len(chunk.data) <= limit
        if not chunk.data:
            return b"".join(parts)
        parts.append(chunk.data)
        offset = chunk.next_offset


def shell(attempt: str, script: str, *, token: int = 1, **fields: Any) -> JobSpec:
    """A job that runs a shell script."""
    return JobSpec(attempt, token, argv=("/bin/sh", "-c", script), **fields)


class ComputeContract:
    """The tests. ``make_backend`` is the subclass's; ``folder`` is an empty folder of the test's own."""

    def make_backend(self, folder: Path) -> ComputeBackend:
        """A new backend."""
        raise NotImplementedError

    def test_a_job_that_ends_well_is_exited_with_reason_ok(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        before = time.time()
        backend.submit(shell("at_ok", "exit 0", token=7))
        ended = wait_for_exit(backend, "at_ok")
        assert (ended.reason, ended.code, ended.signal, ended.error, ended.token) == ("ok", 0, None, None, 7)
        assert before - 1 <= ended.started_at <= ended.ended_at <= time.time() + 1

    def test_a_failing_job_keeps_its_code(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_bad", "exit 41"))
        ended = wait_for_exit(backend, "at_bad")
        assert (ended.reason, ended.code) == ("error", 41)
        assert ended.error is not None and "41" in ended.error.message

    def test_a_job_that_dies_of_a_signal_says_which(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_signal", "kill -SEGV $$"))
        ended = wait_for_exit(backend, "at_signal")
        assert (ended.reason, ended.code, ended.signal) == ("error", None, 11)

    def test_a_program_that_does_not_exist_is_a_launch_failure(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(JobSpec("at_missing", 1, argv=("/no/such/program",)))
        ended = wait_for_exit(backend, "at_missing")
        assert ended.reason == "launch"
        assert ended.error is not None and ended.error.message

    def test_a_second_submit_starts_nothing(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        spec = shell("at_twice", "echo ran; sleep 0.2")
        backend.submit(spec)
        backend.submit(spec)
        wait_for_exit(backend, "at_twice")
        backend.submit(spec)
        assert wait_for_exit(backend, "at_twice").reason == "ok"
        assert read_log(backend, "at_twice") == b"ran\n"

    def test_the_same_name_with_another_spec_is_a_conflict(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_same", "exit 0"))
        try:
            backend.submit(shell("at_same", "exit 1"))
        except Conflict:
            pass
        else:
            raise AssertionError("a second spec was accepted under the same name")
        assert wait_for_exit(backend, "at_same").reason == "ok"

    def test_arguments_reach_the_program_as_they_are(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        argument = "$(id) `id` ; rm -rf * | 'quoted' \n ü"
        backend.submit(JobSpec("at_argv", 1, argv=("/bin/sh", "-c", 'printf %s "$1"', "sh", argument)))
        wait_for_exit(backend, "at_argv")
        assert read_log(backend, "at_argv").decode() == argument

    def test_the_environment_is_the_spec_and_a_minimum(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        script = "import json, os; print(json.dumps(dict(os.environ)))"
        spec = JobSpec("at_env", 1, argv=(sys.executable, "-S", "-c", script), environ={"GREETING": "hello"})
        backend.submit(spec)
        assert wait_for_exit(backend, "at_env").reason == "ok"
        shown = read_log(backend, "at_env").decode()
        assert '"GREETING": "hello"' in shown and '"LOOPLINE_ATTEMPT": "at_env"' in shown
        assert "PYTEST_CURRENT_TEST" not in shown

    def test_a_log_is_read_in_pieces_while_the_job_runs_and_to_its_end(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_log", "echo first; while [ ! -e go ]; do sleep 0.02; done; echo last >&2"))
        first = wait_for(lambda: backend.logs("at_log").data, "the first line")
        assert first == b"first\n"
        assert not backend.logs("at_log").end
        backend.stop("at_log", grace_seconds=0)
        wait_for_end(backend, "at_log")
        last = backend.logs("at_log", offset=3, limit=1000)
        assert (last.data, last.next_offset, last.end) == (b"st\n", 6, True)
        assert read_log(backend, "at_log", limit=2) == b"first\n"
        assert backend.logs("at_log", offset=1000).data == b""

    def test_stop_ends_a_job_that_listens_within_its_grace(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_polite", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"))
        wait_for(lambda: backend.logs("at_polite").data, "the job's first line")
        backend.stop("at_polite", grace_seconds=60)
        ended = wait_for_exit(backend, "at_polite")
        assert (ended.reason, ended.code) == ("stopped", 0)
        assert read_log(backend, "at_polite").endswith(b"bye\n")

    def test_stop_ends_a_job_that_does_not_listen_after_its_grace(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done"))
        wait_for(lambda: backend.logs("at_deaf").data, "the job's first line")
        asked = time.monotonic()
        backend.stop("at_deaf", grace_seconds=0.5)
        backend.stop("at_deaf", grace_seconds=0.5)
        ended = wait_for_exit(backend, "at_deaf")
        assert (ended.reason, ended.signal) == ("stopped", 9)
        assert time.monotonic() - asked >= 0.4

    def test_stop_of_an_ended_job_changes_nothing(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_over", "exit 3"))
        before = wait_for_exit(backend, "at_over")
        backend.stop("at_over")
        assert wait_for_exit(backend, "at_over") == before

    def test_a_job_that_hangs_is_ended_by_its_timeout(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.submit(shell("at_hang", "sleep 600", limits=Limits(timeout_seconds=0.5, grace_seconds=1)))
        ended = wait_for_exit(backend, "at_hang")
        assert ended.reason == "timeout"
        assert 0.4 <= ended.ended_at - ended.started_at < 60

    def test_an_attempt_nobody_submitted_is_not_found(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        for ask in (backend.poll, backend.stop, backend.logs):
            try:
                ask("at_nobody")
            except NotFound:
                continue
            raise AssertionError(f"{ask} knew an attempt that does not exist")

    def test_a_name_that_is_a_path_is_refused(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        for name in ("../escape", "a/b", "", ".", "..", "at_x\n", "at-x", "at_ü", "a" * 200):
            for ask in (lambda n: backend.submit(shell(n, "exit 0")), backend.poll, backend.stop, backend.logs):
                try:
                    ask(name)
                except InvalidInput:
                    continue
                raise AssertionError(f"the name {name!r} was accepted")
