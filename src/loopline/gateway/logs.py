"""One JSON line per event to standard error, which the supervisor keeps."""

import contextlib
import json
import sys
import time
from typing import Any


def log(event: str, **fields: Any) -> None:
    """Write one line; control characters in ``fields`` are escaped by JSON. A full disk loses the line only."""
    with contextlib.suppress(OSError):
        print(json.dumps({"at": time.time(), "event": event, **fields}), file=sys.stderr, flush=True)
