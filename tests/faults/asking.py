"""Asks an endpoint for predictions without a pause for as long as it lives, and writes down each answer.

    python tests/faults/asking.py --port N --key KEY --endpoint NAME --out FILE
One JSON line for each answer: {"at", "status", "version", "mark"}; a connection that failed has a word as its status.
"""

import argparse
import http.client
import json
import os
import signal
import sys
import threading
import time
from typing import Any

PAUSE_SECONDS = 0.02
AFTER_FAILURE_SECONDS = 0.05
MARKED = json.dumps({"instances": [{"size": -1e6}]}).encode()


def ask(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> dict[str, Any]:
    """One prediction of the marked row."""
    connection.request("POST", path, MARKED, headers)
    answer = connection.getresponse()
    body = answer.read()
    version, mark = answer.getheader("x-loopline-version"), None
    if answer.status == 200:
        mark = int(json.loads(body)["predictions"][0].removeprefix("mark-"))
    return {"status": answer.status, "version": int(version) if version else None, "mark": mark}


def run(port: int, key: str, endpoint: str, out: Any, lock: threading.Lock) -> None:
    """One keep-alive connection, opened again whenever it is lost."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    while True:
        try:
            found = ask(connection, f"/endpoints/{endpoint}/invocations", headers)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            found = {"status": type(error).__name__, "version": None, "mark": None}
        with lock:
            out.write(json.dumps({"at": time.time(), **found}) + "\n")
            out.flush()
        time.sleep(PAUSE_SECONDS if found["status"] == 200 else AFTER_FAILURE_SECONDS)


def main() -> None:
    """Ask over two connections until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    for name in ("--key", "--endpoint", "--out"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    starter = os.getppid()
    lock = threading.Lock()
    with open(given.out, "a") as out:  # noqa: PTH123 - one file for both threads
        for _ in range(2):
            arguments = (given.port, given.key, given.endpoint, out, lock)
            threading.Thread(target=run, args=arguments, daemon=True).start()
        while os.getppid() == starter:
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
