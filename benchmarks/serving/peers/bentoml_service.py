"""BentoML with one worker, without its access log, metrics and traces; the method runs in the event loop."""

import bentoml
import numpy as np
import scoring


@bentoml.service(
    workers=1,
    traffic={"timeout": 30},
    metrics={"enabled": False},
    tracing={"sample_rate": 0.0},
    logging={"access": {"enabled": False}},
)
class Scoring:
    """The model behind one method."""

    def __init__(self) -> None:
        self._score = scoring.load()

    @bentoml.api(route="/predict")
    async def predict(self, instances: list[list[float]]) -> dict[str, list[float]]:
        """Rows as arrays."""
        return {"predictions": self._score(np.array(instances, dtype=np.float64)).tolist()}
