"""How times, durations, shares and statuses read on a page."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

TONES = {
    **dict.fromkeys(("Succeeded", "Approved", "InService", "Ready", "OK", "Passed"), "good"),
    **dict.fromkeys(("Failed", "Rejected", "ALARM", "Refused", "RolledBack", "RollingBack", "Lost"), "bad"),
    **dict.fromkeys(
        ("Running", "Scoring", "Testing", "Shifting", "Baking", "Starting", "Updating", "Creating"), "busy"
    ),
    **dict.fromkeys(("PendingManualApproval", "Stopping", "Stopped", "INSUFFICIENT_DATA", "Warm", "Claimed"), "wait"),
}


def tone(status: str | None) -> str:
    """The class of a status: good, bad, busy, wait or plain."""
    return TONES.get(status or "", "plain")


def ago(at: float | None, now: float) -> str:
    """``12 s``, ``5 min``, ``3 h`` or ``2 d`` before ``now``."""
    if at is None:
        return ""
    return f"{_short(max(0.0, now - at))} ago"


def lasted(start: float | None, end: float | None) -> str:
    """How long something took; empty when it has not ended."""
    return "" if start is None or end is None else _short(end - start)


def _short(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(at: float | None) -> str:
    """RFC 3339 in UTC."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def percent(share: float) -> str:
    """A share as text: ``5 %``, ``99.5 %``."""
    return f"{100 * share:.3g} %"


def figure(value: float | None) -> str:
    """A number of a report: three places of what is small, whole numbers as they are, and a dash for none."""
    if not isinstance(value, int | float):  # also what a report does not have
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def rule(definition: dict[str, Any] | None) -> str:
    """An alarm's rule in one line."""
    given = definition or {}
    if "metric" not in given:
        return ""
    return f"{given['metric']} {given.get('comparison', '>')} {given.get('threshold', 0):g}"


FILTERS: dict[str, Callable[..., str]] = {
    "tone": tone,
    "ago": ago,
    "lasted": lasted,
    "clock": clock,
    "percent": percent,
    "figure": figure,
    "rule": rule,
}
