"""What an idle installation costs: seconds until it is ready, and memory by process.

    python benchmarks/pipelines/idle.py [--seconds 30]

Memory is PSS, in which a page that n processes share counts n-th part in each, so that the sum is what is really used.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from installation import Installation, process_ids


def pss_mb(pid: int) -> float:
    """A process's proportional set in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    return int(found[1]) / 1024 if found else 0.0


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, all threads."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


def measure(folder: Path, wait_seconds: float) -> tuple[float, dict[str, float], dict[str, float]]:
    """(seconds until ready, PSS in MB by process, processor share in percent by process) of a new installation."""
    started = Installation(folder)
    try:
        pids = process_ids(folder)
        time.sleep(wait_seconds / 2)  # what a start costs is no part of being idle
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(wait_seconds / 2)
        busy = {name: 200 * (cpu_seconds(pid) - before[name]) / wait_seconds for name, pid in pids.items()}
        return started.ready_seconds, {name: pss_mb(pid) for name, pid in pids.items()}, busy
    finally:
        started.stop()


def main() -> int:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ready, memory, busy = measure(Path(folder) / "data", options.seconds)
    print(f"ready after {ready:.2f} s")
    for name, megabytes in sorted(memory.items(), key=lambda item: -item[1]):
        print(f"{name:20} {megabytes:7.1f} MB {busy[name]:6.2f} % of a processor")
    print(f"{'sum':20} {sum(memory.values()):7.1f} MB {sum(busy.values()):6.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
