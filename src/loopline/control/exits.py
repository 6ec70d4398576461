"""How a process ended: as it can be stored, and in one sentence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.runtime.scripts import ProgramKilled

KILLED = ProgramKilled.__name__
MAX_BACKOFF_SECONDS = 3600.0


def storable(value: Any) -> Any:
    """A JSON value whose texts any database takes: an exception's message may hold anything."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return [storable(item) for item in value] if isinstance(value, list | tuple) else value


def is_fault(exit_: dict[str, Any]) -> bool:
    """Whether a process ended by something other than itself: it could not start, or a signal or a crash ended it."""
    if exit_.get("reason") == "launch" or exit_.get("signal"):
        return True
    return (exit_.get("error") or {}).get("type") == KILLED


def delay(job: Mapping[str, Any], tries: int, exit_: dict[str, Any], now: float) -> float | None:
    """Seconds until the try that follows so many that failed, the last one like this; None when none follows."""
    rule = job["retry"] or {}
    if tries >= job["max_tries"] or (rule.get("only") == "faults" and not is_fault(exit_)):
        return None
    seconds = float(min(job["backoff_seconds"] * rule.get("rate", 2.0) ** min(tries - 1, 100), MAX_BACKOFF_SECONDS))
    last = rule.get("seconds")
    return None if last is not None and now + seconds > (job["started_at"] or now) + last else seconds


def reason(exit_: dict[str, Any]) -> str:
    """One sentence about how a process ended."""
    error = exit_.get("error") or {}
    where = f" ({Path(error['file']).name}:{error['line']})" if error.get("file") and error.get("line") else ""
    match exit_.get("reason"):
        case "ok":
            return "done"
        case "timeout" | "memory" | "disk" | "cpu" as limit:
            return f"stopped at its {limit} limit" + (f": {error['message']}" if error.get("message") else "")
        case "stopped":
            return "stopped on request"
        case "launch":
            return f"could not start: {error.get('message', 'no reason given')}"
    if error.get("message") or error.get("type"):
        return f"{error.get('type', 'error')}: {error.get('message', '')}{where}"
    if exit_.get("signal"):
        return f"killed by signal {exit_['signal']}"
    return f"exit code {exit_.get('code')}"
