"""KServe's Python server with one worker, without documentation pages, latency log and access log."""

import argparse
from typing import Any

import kserve
import numpy as np
import scoring


class Model(kserve.Model):  # type: ignore[misc]
    """V1 protocol: instances in, predictions out."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._score = scoring.load()
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, _response_headers: Any = None) -> Any:
        """Rows as arrays."""
        return {"predictions": self._score(np.array(payload["instances"], dtype=np.float64)).tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    server = kserve.ModelServer(
        http_port=given.port,
        workers=1,
        enable_grpc=False,
        enable_docs_url=False,
        enable_latency_logging=False,
        access_log_format=None,
    )
    server.start([Model("bench")])
