"""A clock that stands still until a test moves it."""

from loopline.control.context import Clock


class ManualClock(Clock):
    """Stands in for ``Clock`` wherever one is asked for; ``advance`` is the only thing that moves it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        """Seconds since the epoch, as last set."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Move on and give the new time; a clock does not go back, so that negative ``seconds`` raise ValueError."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._now += seconds
        return self._now
