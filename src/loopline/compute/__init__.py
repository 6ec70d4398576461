"""Where jobs run: the ComputeBackend port, its backends, and the environments they run in.

A backend only starts, watches and ends attempts; what an attempt means is known above. Names of attempts never become
other paths.
"""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["command", "step", "compile", "score", "convert", "batch", "script", "transform"]
State = Literal["unclaimed", "running", "exited", "lost"]
Reason = Literal["ok", "error", "timeout", "memory", "disk", "cpu", "stopped", "launch"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use; None is no limit. ``grace_seconds`` lies between SIGTERM and SIGKILL."""

    memory_mb: float | None = None
    cpu_seconds: float | None = None
    open_files: int | None = None
    disk_mb: float | None = None
    log_mb: float | None = 64
    timeout_seconds: float | None = None
    grace_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a job may reach besides the system, its environment and its own folder: absolute paths."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    network: bool = True


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One attempt at one job.

    ``argv`` belongs to the kind "command" and is never given to a shell; ``call`` belongs to the others. An empty
    ``python`` is the backend's own choice of interpreter, an empty ``workdir`` a new folder inside the attempt's.
    ``warm`` names the forkserver of the environment, if there is one; it changes nothing but the speed. ``hidden``:
    variables whose values the log does not show.
    """

    attempt: str
    token: int
    kind: Kind = "command"
    argv: tuple[str, ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)
    python: str = ""
    workdir: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    sandbox: Sandbox = field(default_factory=Sandbox)
    warm: str | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, as far as it is known; ``file`` and ``line`` are in user code."""

    type: str
    message: str
    traceback: str | None = None
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How an attempt ended. ``code`` and ``signal`` are of its main process; at most one of them is set."""

    reason: Reason
    code: int | None
    signal: int | None
    error: JobError | None
    started_at: float
    ended_at: float
    cpu_seconds: float
    max_rss_bytes: int
    token: int
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """Where an attempt stands.

    unclaimed: handed over, not begun. running. exited: ``exit`` says how. lost: it ended without a result, and nothing
    of it runs any more; ``detail`` says why.
    """

    attempt: str
    state: State
    exit: Exit | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a log: ``data`` lies at ``offset``, the next piece at ``next_offset``.

    ``end``: the attempt has ended and nothing follows this piece. ``times``: (offset, when what lies there and after it
    came), in seconds since the epoch, as far as the backend knows: the last one before the piece, and those within it.
    """

    offset: int
    next_offset: int
    data: bytes
    end: bool
    times: tuple[tuple[int, float], ...] = ()

    def decoded(self, *, last: bool) -> tuple[str, int, list[list[float]]]:
        """The piece as text; where the next begins; ``times`` as [place in the text, when].

        A character that is not whole yet belongs to the next piece, unless this is the ``last`` one.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, begin = "", 0
        places: list[list[float]] = []
        for at, when in self.times:
            end = max(0, at - self.offset)
            text += decoder.decode(self.data[begin:end])
            places.append([len(text), when])
            begin = end
        text += decoder.decode(self.data[begin:])
        held = len(decoder.getstate()[0])
        if last and not text:
            text, held = decoder.decode(b"", final=True), 0
        return text, self.next_offset - held, places


class ComputeBackend(Protocol):
    """Runs attempts. Every method may be called from any thread, and again after a restart of the caller.

    Raises InvalidInput for an attempt name that is none, NotFound for an attempt that was never submitted here.
    """

    def submit(self, spec: JobSpec) -> None:
        """Start an attempt; a second submit of the same one changes nothing. Conflict when the specs differ."""
        ...

    def poll(self, attempt: str) -> Status:
        """Where the attempt stands now."""
        ...

    def stop(self, attempt: str, grace_seconds: float = 5.0) -> None:
        """Ask the attempt to end, and end it by force after the grace; does not wait, and may be repeated."""
        ...

    def logs(self, attempt: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        """At most ``limit`` bytes of the job's output from ``offset`` on."""
        ...
