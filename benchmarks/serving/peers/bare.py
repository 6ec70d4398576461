"""The model alone, called in a loop without any server: microseconds of processor time, as one line of JSON."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import scoring


def main(rows: Path, seconds: float) -> None:
    """Calls with one row, then with 64 rows."""
    matrix = np.array(json.loads(rows.read_text())["rows"], dtype=np.float64)
    score = scoring.load()
    found = {}
    for size in (1, len(matrix)):
        part = matrix[:size]
        score(part)
        times, began, used = [], time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            score(part)
            times.append(time.perf_counter() - start)
        ordered = sorted(times)
        found[size] = {
            "cpu_us": 1e6 * (time.process_time() - used) / len(times) / size,
            "p50_ms": 1e3 * ordered[len(ordered) // 2],
            "p99_ms": 1e3 * ordered[len(ordered) * 99 // 100],
            "rps": len(times) / sum(times),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
