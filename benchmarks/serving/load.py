"""Load by wrk on one core, and what the server's processes on the other core used meanwhile."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER_CORE, CLIENT_CORE = 0, 1
TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
QUIET_SHARE = 0.03  # of a core: a process tree that uses less has caught up
DRAIN_SECONDS = 30.0


class BenchError(Exception):
    """Something that was to be measured cannot be; the text says why."""


def require_wrk() -> None:
    """Raises when the machine cannot run this benchmark."""
    if shutil.which("wrk") is None:
        raise BenchError("wrk is not installed: apt-get install wrk")
    if shutil.which("taskset") is None:
        raise BenchError("taskset is not installed: apt-get install util-linux")
    if len(os.sched_getaffinity(0)) < 2:
        raise BenchError("two processors are needed: one for wrk, one for the server")


def adopt_orphans() -> None:
    """Make this process the parent of whatever a server leaves behind, so that nothing of it goes uncounted."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pinned(command: list[str]) -> list[str]:
    """The command on the server's core."""
    return ["taskset", "-c", str(SERVER_CORE), *command]


# -- processes --------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def descendants(*, without: int = 0) -> dict[int, list[str]]:
    """{pid: fields of its stat} of everything below this process, but for ``without``."""
    stats = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found: dict[int, list[str]] = {}
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, words in stats.items() if words and int(words[1]) in fresh and pid != without} - set(
            found
        )
        found.update({pid: stats[pid] for pid in fresh})
    return found


def cpu_of(pid: int) -> float:
    """Processor time of one process and of its children that have ended."""
    return sum(map(int, _stat(pid)[11:15])) / TICKS


def cpu_seconds(*, without: int = 0) -> float:
    """Processor time of everything below this process, of children that have ended meanwhile, too."""
    return sum(sum(map(int, words[11:15])) for words in descendants(without=without).values()) / TICKS


def pss_mb() -> float:
    """Memory of everything below this process; a page that n processes share counts an n-th in each."""
    total = 0
    for pid in descendants():
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        total += int(found[1]) if found else 0
    return total / 1024


def machine_busy_seconds() -> float:
    """Processor time that the whole machine has spent on anything."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(word) for place, word in enumerate(words[:8]) if place not in (3, 4)) / TICKS


def reap() -> None:
    """Collect adopted processes that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


# -- wrk --------------------------------------------------------------------------------------------------------------

SCRIPT = """
local bodies, place = {{}}, 0
function init(args)
  for line in io.lines({bodies!r}) do
    bodies[#bodies + 1] = wrk.format("POST", nil, {{{headers}}}, line)
  end
end
function request()
  place = place % #bodies + 1
  return bodies[place]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nRESULT {{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"max_ms":%f,"errors":%d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass
class Load:
    """What to send: ready-made bodies in turn, all to one address."""

    url: str
    bodies: list[bytes]
    headers: dict[str, str]
    leaves_work: bool = False  # its processes go on with what the requests left behind, which belongs to them
    parts: Callable[[], Mapping[str, int]] | None = None  # {name: pid} of its processes, to tell what each used

    def script(self, folder: Path) -> Path:
        """wrk's script."""
        lines = folder / "bodies"
        lines.write_bytes(b"\n".join(self.bodies))
        headers = ", ".join(
            f"[{json.dumps(k)}] = {json.dumps(v)}"
            for k, v in {"Content-Type": "application/json", **self.headers}.items()
        )
        path = folder / "load.lua"
        path.write_text(SCRIPT.format(bodies=str(lines), headers=headers))
        return path


def fire(load: Load, connections: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One run: requests a second, latencies, and microseconds of the server's processor time a request.

    ``foreign`` is how many cores were busy with something else: above 0.1 the figures are disturbed.
    """
    command = ["taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s"]
    command += ["--timeout", "10s", "-s", str(load.script(folder)), load.url]
    reap()
    parts = load.parts() if load.parts else {}
    before = {name: cpu_of(pid) for name, pid in parts.items()}
    busy, used, began = machine_busy_seconds(), cpu_seconds(), time.monotonic()
    wrk = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert wrk.stdout is not None
    said = wrk.stdout.read()
    _, _, usage = os.wait4(wrk.pid, 0)
    wrk.returncode = 0
    within, elapsed = cpu_seconds() - used, time.monotonic() - began
    foreign = machine_busy_seconds() - busy - within - usage.ru_utime - usage.ru_stime
    match = re.search(r"RESULT (\{.*\})", said)
    if not match:
        raise BenchError(f"wrk says: {said.strip()[-300:]}")
    found: dict[str, Any] = json.loads(match[1])
    if not found["requests"]:
        raise BenchError("no request was answered")
    late = wait_until_quiet() if load.leaves_work else 0.0
    spent = cpu_seconds() - used if load.leaves_work else within
    each = {name: 1e6 * (cpu_of(pid) - before[name]) / found["requests"] for name, pid in parts.items()}
    if each:
        each["rest"] = 1e6 * spent / found["requests"] - sum(each.values())
    return {
        "rps": found["requests"] / found["seconds"],
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "errors": found["errors"],
        "requests": found["requests"],
        "cpu_us": 1e6 * spent / found["requests"],
        "parts_us": each,
        "cores": within / elapsed,
        "late_cpu_share": (spent - within) / spent if spent else 0.0,
        "late_seconds": late,
        "foreign": max(0.0, foreign / elapsed),
    }


def wait_until_quiet() -> float:
    """Wait until the server's processes have nothing left to do; gives the seconds that took."""
    began = time.monotonic()
    before = cpu_seconds()
    while time.monotonic() - began < DRAIN_SECONDS:
        time.sleep(0.5)
        now = cpu_seconds()
        if (now - before) / 0.5 <= QUIET_SHARE:
            break
        before = now
    return time.monotonic() - began
