"""Answer requests with the fine-tuned model: what SageMaker's Hugging Face container loads from ``code/``.

Requests and answers are those of ``train/inference.py``.
"""

import json

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_TOKENS = 256
BATCH = 32


def model_fn(model_dir):
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir, local_files_only=True)
    return tokenizer, model.eval()


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
    tokenizer, network = model
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            given = tokenizer(
                texts[start : start + BATCH], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            for row in network(**given).logits.softmax(dim=-1):
                best = int(row.argmax())
                found.append({"label": network.config.id2label[best], "score": round(float(row[best]), 4)})
    return found
