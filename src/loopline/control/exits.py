"""How a process ended: as it can be stored, and in one sentence."""

from pathlib import Path
from typing import Any

from loopline.runtime.scripts import ProgramKilled

KILLED = ProgramKilled.__name__


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
