"""MLServer's runtime for the model: the tensor of the V2 protocol straight into numpy."""

from typing import Any

import numpy as np
import scoring
from mlserver import MLModel
from mlserver.codecs import NumpyCodec


class Model(MLModel):  # type: ignore[misc]
    """Decodes with MLServer's own codec."""

    async def load(self) -> bool:
        """Load once."""
        self._score = scoring.load()
        return True

    async def predict(self, payload: Any) -> Any:
        """A tensor in, a tensor out."""
        from mlserver.types import InferenceResponse

        matrix = NumpyCodec.decode_input(payload.inputs[0])
        scores = np.asarray(self._score(matrix), dtype=np.float64)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("score", scores)])
