"""Save the model as MLflow serves it fastest: a Python model with a tensor signature, so that no data frame is made."""

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import scoring
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Asks the model of the benchmark."""

    def load_context(self, context: Any) -> None:
        """Load once."""
        self._score = scoring.load()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        """An array in, an array out."""
        return self._score(model_input)


if __name__ == "__main__":
    signature = ModelSignature(Schema([TensorSpec(np.dtype(np.float64), (-1, 30))]))
    mlflow.pyfunc.save_model(
        sys.argv[1],
        python_model=Model(),
        signature=signature,
        code_paths=[str(Path(scoring.__file__))],
        pip_requirements=[],
    )
