"""LitServe with one worker; ``--batch N`` puts requests that come within a millisecond together."""

import argparse
from typing import Any

import litserve
import numpy as np
import scoring
from fastapi import Request


class Api(litserve.LitAPI):  # type: ignore[misc]
    """The model, asked for each request."""

    def setup(self, _device: str) -> None:
        """Load once."""
        self._score = scoring.load()

    def decode_request(self, request: Request) -> Any:
        """The matrix of a request."""
        return np.array(request["instances"], dtype=np.float64)

    def predict(self, matrix: Any) -> Any:
        """Scores."""
        return self._score(matrix)

    def encode_response(self, output: Any) -> Any:
        """JSON."""
        return {"predictions": output.tolist()}


class Batching(Api):
    """The model, asked once for several requests of one row each."""

    def batch(self, inputs: list[Any]) -> Any:
        """One matrix."""
        return np.concatenate(inputs)

    def unbatch(self, output: Any) -> Any:
        """One score for each request."""
        return [output[place : place + 1] for place in range(len(output))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    api = Batching(max_batch_size=given.batch, batch_timeout=0.001) if given.batch > 1 else Api()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        port=given.port,
        host="127.0.0.1",
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )
