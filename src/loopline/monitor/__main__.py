"""``python -m loopline.monitor --dir DIR``: runs until SIGTERM, or until the process that started it is gone."""

import argparse
import os
import signal
import threading
import time

from loopline import config
from loopline.monitor.process import Monitor

POLL_SECONDS = 0.25  # each look costs a little, however few requests there are


def main() -> int:
    """Run the monitor; gives 0 after an orderly end."""
    parser = argparse.ArgumentParser(prog="loopline.monitor", description="Spool to counters to evidence.")
    parser.add_argument("--dir", help="the data directory")
    options = parser.parse_args()
    parent = os.getppid()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    monitor = Monitor(config.load(dir=options.dir), time.time())
    while not stopping.is_set() and os.getppid() == parent:
        if not monitor.step(time.time()):
            stopping.wait(POLL_SECONDS)
    monitor.close(time.time())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
