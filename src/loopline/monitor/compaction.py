"""When the request log is written as Parquet: by a child of the monitor, now and then, where pyarrow is installed."""

import subprocess
import sys
from importlib.util import find_spec

from loopline.config import Settings

EVERY_SECONDS = 600.0


class Compaction:
    """At most one child at a time. Without pyarrow there is none: nothing is imported to find that out."""

    def __init__(self, settings: Settings, now: float, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._argv = [sys.executable, "-m", "loopline.monitor.parquet", *settings.command_line()]
        self._every = every_seconds
        self._due = now + every_seconds
        self.child: subprocess.Popen[bytes] | None = None
        self.possible = find_spec("pyarrow") is not None

    def poll(self, now: float) -> None:
        """Start a child when it is time, unless the last one is still at it."""
        if self.child is not None and self.child.poll() is not None:
            self.child = None
        if self.possible and self.child is None and now >= self._due:
            self._due = now + self._every
            self.child = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL)  # it lowers its own priority

    def stop(self) -> None:
        """End the child: what it was at is done anew by the next one."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None
