"""Ray Serve behind HAProxy with its settings for throughput: one replica, which decodes with orjson and numpy."""

import argparse
import signal
from typing import Any

import numpy as np
import orjson
import ray
import scoring
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

QUIET = {"enable_access_log": False, "log_level": "WARNING"}


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5}, logging_config=QUIET)
class Scoring:
    """The model in one replica."""

    def __init__(self) -> None:
        self._score = scoring.load()

    async def __call__(self, request: Request) -> Any:
        """Rows as arrays."""
        rows = orjson.loads(await request.body())["instances"]
        answer = {"predictions": self._score(np.array(rows, dtype=np.float64)).tolist()}
        return Response(orjson.dumps(answer), media_type="application/json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", required=True)
    given = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False, _temp_dir=given.folder)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port}, logging_config=QUIET)
    serve.run(Scoring.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
