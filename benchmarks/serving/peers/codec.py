"""What a request must cost beside HTTP and the model: its JSON to a matrix's row, a score to JSON; one line of JSON."""

import json
import sys
import time
from pathlib import Path

import msgspec
import numpy as np


class Body(msgspec.Struct):
    """What is sent."""

    instances: list[list[float]]


def main(rows: Path, seconds: float) -> None:
    """Decode and encode in turn, one request at a time; the matrix is made once for 64 of them."""
    matrix = json.loads(rows.read_text())["rows"]
    bodies = [json.dumps({"instances": [row]}, separators=(",", ":")).encode() for row in matrix]
    decode, encode = msgspec.json.Decoder(Body).decode, msgspec.json.Encoder().encode
    scores = [index / len(bodies) / 3 for index in range(len(bodies))]
    count, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        np.array([decode(body).instances[0] for body in bodies])
        for score in scores:
            encode({"predictions": [score]})
        count += len(bodies)
    print(json.dumps({"cpu_us": 1e6 * (time.process_time() - used) / count}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
