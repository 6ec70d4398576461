"""Answer requests with the model that ``train.py`` left: what SageMaker's scikit-learn container loads.

A request is ``{"inputs": "a sentence"}`` or ``{"inputs": ["one", "another"]}``, and its answer
``[{"label": "positive", "score": 0.97}]``, the form of the Hugging Face containers. A list of rows with a ``text`` each
is answered by a list of labels: so a gate asks with its test data.
"""

import json
from pathlib import Path

import joblib


def model_fn(model_dir):
    return joblib.load(Path(model_dir, "model.joblib"))


def input_fn(body, content_type):
    if content_type.partition(";")[0].strip() != "application/json":
        raise ValueError(f"send application/json, not {content_type}")
    asked = json.loads(body)
    if isinstance(asked, list):
        return {"texts": [row["text"] for row in asked], "labels_only": True}
    texts = asked["inputs"]
    return {"texts": [texts] if isinstance(texts, str) else texts, "labels_only": False}


def predict_fn(asked, model):
    found = classify(asked["texts"], model)
    return [each["label"] for each in found] if asked["labels_only"] else found


def output_fn(found, accept):
    return json.dumps(found), "application/json"


def classify(texts, model):
    """A label and its probability for each text."""
    rows = model.predict_proba(texts)
    return [{"label": str(model.classes_[row.argmax()]), "score": round(float(row.max()), 4)} for row in rows]
