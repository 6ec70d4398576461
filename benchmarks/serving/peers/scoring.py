"""The model that every server answers with: one function from a matrix to scores, whatever file it comes from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "BENCH_MODEL"  # the folder that train.py wrote


def load(frames: bool = False) -> Callable[[Any], Any]:
    """``score(matrix of n x 30) -> n scores`` of the folder in ``BENCH_MODEL``; with ``frames``, of the copy that was
    fitted on a data frame and takes one."""
    folder = Path(os.environ[MODEL])
    if (folder / "model.onnx").exists():
        return _network(folder / "model.onnx")
    import joblib

    model = joblib.load(folder / ("model-of-frames.joblib" if frames else "model.joblib"))
    return lambda matrix: model.predict_proba(matrix)[:, 1]


def _network(path: Path) -> Callable[[Any], Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda matrix: session.run(None, {"features": np.asarray(matrix, dtype=np.float32)})[0][:, 0]
