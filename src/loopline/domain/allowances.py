"""What a key may still ask for: a token bucket (rate, burst) and a quota per window, kept as three numbers in a file.

The bucket is the generic cell rate algorithm (ITU-T I.371): one number, the time at which the bucket will be full
again. Quota windows lie on the clock (UTC): a day's begins at midnight. Every process that counts a key's requests
does so in the same file, under its lock.
"""

import math
from typing import NamedTuple, Protocol

from loopline.errors import QuotaExceeded, RateLimited

FOLDER = "allowances"  # below the data directory: a file for each limited key, by its id
FILE_BYTES = 64
CELLS = 3  # of 8 bytes each, doubles of the machine
_FULL_AT, _WINDOW, _COUNT = range(CELLS)


class Cells(Protocol):
    """The three numbers."""

    def __getitem__(self, place: int, /) -> float: ...

    def __setitem__(self, place: int, value: float, /) -> None: ...


class Terms(NamedTuple):
    """The limits of a key: seconds that one request takes from the bucket (0: no rate), seconds that it holds, requests
    in a window (0: no quota), and the window's seconds."""

    spacing: float
    depth: float
    quota: int
    quota_seconds: int


NONE = Terms(0.0, 0.0, 0, 0)


def terms(rate: float | None, burst: float | None, quota: int | None, quota_seconds: int | None) -> Terms:
    """``rate``: requests a second; ``burst``: so many at once, by default a second's, at least one."""
    spacing = 1 / rate if rate else 0.0
    depth = spacing * (burst or max(1.0, rate or 0.0))
    return Terms(spacing, depth, quota or 0, quota_seconds or 0)


def spend(cells: Cells, limits: Terms, now: float) -> tuple[int, int]:
    """Count one request at ``now``, seconds since the epoch; gives what the bucket and the quota hold after it.

    Raises ``RateLimited`` or ``QuotaExceeded``, with ``retry_after_seconds`` among the details; such a request counts
    for nothing.
    """
    spacing, depth, quota, seconds = limits
    count = window = left = 0
    if quota:
        window = int(now // seconds)
        count = int(cells[_COUNT]) if cells[_WINDOW] == window else 0
        if count >= quota:
            raise QuotaExceeded(
                f"this key's quota of {quota} requests in {seconds} s is used up",
                retry_after_seconds=max(1, math.ceil((window + 1) * seconds - now)),
            )
    if spacing:
        full_at = cells[_FULL_AT]
        if not now < full_at < now + depth + spacing:
            full_at = now  # full again; or the clock was set back, or the limits are new: they begin with all of it
        full_at += spacing
        over = full_at - now - depth
        if over > 1e-6:
            raise RateLimited(
                f"this key may send {1 / spacing:g} requests a second",
                retry_after_seconds=max(1, math.ceil(over)),
            )
        cells[_FULL_AT] = full_at
        left = int(-over / spacing + 1e-6)
    if quota:
        cells[_WINDOW], cells[_COUNT] = window, count + 1
    return left, quota - count - 1
