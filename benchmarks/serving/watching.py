"""What the monitor costs: processor time a request on a spool that is written first, everything counted.

    python benchmarks/serving/watching.py [--requests 200000] [--rate 15000] [--width 30]

``--rate``: requests in one second of the spool's time; rows beyond the monitor's limit a second are not looked at.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from loopline import config
from loopline.domain.baselines import baseline_from_columns
from loopline.domain.capture import Captured, encode_captured
from loopline.monitor.process import Monitor

CONTEXT = {
    "endpoint": "scoring",
    "variant": "v1",
    "version": 1,
    "model": "scoring",
    "key": "abcdefgh",
    "content_type": "application/json",
    "join": None,
}
SEGMENT_RECORDS = 16_000
BLOCK_RECORDS = 100  # that leave a gateway together


def write(folder: Path, requests: int, rate: int, width: int, named: bool) -> None:
    """A spool as a gateway writes it, and what the monitor is told to watch."""
    chance = np.random.default_rng(0)
    names = [f"f{place}" for place in range(width)]
    table = chance.normal(0, 1, (5000, width))
    columns = {**dict(zip(names, table.T, strict=True)), "@prediction": table[:, 0], "@score": table[:, 0]}
    variant = {
        "version": "ve_1",
        "baseline": baseline_from_columns(columns).to_dict(),
        "signature": {"features": [{"name": name, "type": "number"} for name in names]},
    }
    (folder / "monitors.json").write_text(
        json.dumps({"endpoints": {"scoring": {"variants": {"v1": variant}, "monitor": {}}}})
    )
    spool = folder / "spool" / "gateway-0"
    spool.mkdir(parents=True)
    bodies = [json.dumps({"instances": [row]}, separators=(",", ":")).encode() for row in table[:64].tolist()]
    answers = [json.dumps({"predictions": [abs(row)]}, separators=(",", ":")).encode() for row in table[:64, 0]]
    start = time.time()

    def context(number: int) -> bytes:
        told = {**CONTEXT, "join": f"order-{number}" if named else None}
        return json.dumps(told, separators=(",", ":")).encode()

    for first in range(0, requests, SEGMENT_RECORDS):
        groups: dict[bytes, list[Captured]] = {}
        blocks = []
        for number in range(first, min(first + SEGMENT_RECORDS, requests)):
            taken = 1000 + number % 4000
            captured = (
                b"rq_%020d" % number,
                start + number / rate,
                200,
                taken,
                bodies[number % 64],
                answers[number % 64],
            )
            groups.setdefault(context(number), []).append(captured)
            if (number + 1) % BLOCK_RECORDS == 0:
                blocks += [encode_captured(shared, together) for shared, together in groups.items()]
                groups = {}
        blocks += [encode_captured(shared, together) for shared, together in groups.items()]
        (spool / f"{int(1000 * start) + first:015d}.seg").write_bytes(b"".join(blocks))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--rate", type=int, default=15_000)
    parser.add_argument("--width", type=int, default=30)
    parser.add_argument("--named", action="store_true", help="each request has an id of the client's own")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, options.requests, options.rate, options.width, options.named)
        now = time.time()
        monitor = Monitor(config.load({}, dir=str(folder)), now)
        began = time.process_time()
        while monitor.step(now):
            now += 1.0
        monitor.flush(now)
        seconds = time.process_time() - began
        lines = [json.loads(line) for path in folder.glob("spool/monitor/reports-*") for line in path.open()]
        counted = sum(row["count"] for line in lines for row in line["rows"] if row["kind"] == "traffic")
    if counted != options.requests:
        print(f"{counted} of {options.requests} requests were counted", file=sys.stderr)
        return 1
    print(f"{1e6 * seconds / counted:.2f} us a request ({counted} requests, {options.rate} a second)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
