"""Make the models and the payload: ``python train.py FOLDER``.

``logistic`` and ``boosting`` are fitted on the breast-cancer table that scikit-learn brings (569 rows, 30 features), on
an array and once more on a data frame, for servers that predict on one; the two give the same scores. ``network`` is
an ONNX file of about 1 MB with random weights. ``FOLDER/rows.json`` holds the payload, ``FOLDER/<model>/scores.json``
what the model says to it, computed here without any server.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pandas as pd
import scoring
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS = 64
WIDTH = 480  # two layers of it hold about 245,000 weights: 1 MB


def network(table: Any, path: Path) -> None:
    """A perceptron with two hidden layers behind a scaler."""
    chance = np.random.default_rng(0)
    widths = [table.shape[1], WIDTH, WIDTH, 1]
    weights = {"mean": table.mean(axis=0), "deviation": table.std(axis=0)}
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["layer0"]),
    ]
    for layer, (before, after) in enumerate(itertools.pairwise(widths), start=1):
        weights[f"w{layer}"] = chance.normal(0, 1 / np.sqrt(before), (before, after))
        weights[f"b{layer}"] = chance.normal(0, 0.1, after)
        nodes.append(helper.make_node("Gemm", [f"layer{layer - 1}", f"w{layer}", f"b{layer}"], [f"sum{layer}"]))
        last = after == 1
        nodes.append(
            helper.make_node("Sigmoid" if last else "Relu", [f"sum{layer}"], ["score" if last else f"layer{layer}"])
        )
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, widths[0]])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def main(folder: Path) -> None:
    """Write everything."""
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    table, frame = data.data, pd.DataFrame(data.data, columns=names)
    chosen = np.random.default_rng(1).choice(len(table), ROWS, replace=False)
    for model in ("logistic", "boosting", "network"):
        (folder / model).mkdir(parents=True, exist_ok=True)
    network(table, folder / "network" / "model.onnx")
    for name, make in (
        ("logistic", lambda: make_pipeline(StandardScaler(), LogisticRegression())),
        ("boosting", lambda: GradientBoostingClassifier(n_estimators=200, random_state=0)),
    ):
        joblib.dump(make().fit(table, data.target), folder / name / "model.joblib")
        joblib.dump(make().fit(frame, data.target), folder / name / "model-of-frames.joblib")
    for model in ("logistic", "boosting", "network"):
        os.environ[scoring.MODEL] = str(folder / model)
        scores = [float(score) for score in scoring.load()(table)]
        (folder / model / "training-scores.json").write_text(json.dumps(scores))
        (folder / model / "scores.json").write_text(json.dumps([scores[place] for place in chosen]))
    rows = {"names": names, "rows": table[chosen].tolist(), "training": table.tolist()}
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
