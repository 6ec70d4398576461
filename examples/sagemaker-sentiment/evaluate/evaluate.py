"""Measure a trained model on reviews that it has not seen, by the code that will serve it.

``inference.py`` is beside this file in the job. The report has the form that Model Registry shows: it becomes the
model metrics of the version.
"""

import csv
import json
import shutil
from pathlib import Path

import inference

INPUT = Path("/opt/ml/processing/input")
OUTPUT = Path("/opt/ml/processing/evaluation")


def read_reviews(folder):
    rows = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def share(hits):
    hits = list(hits)
    return round(sum(hits) / len(hits), 4)


def main():
    folder = INPUT / "unpacked"
    shutil.unpack_archive(str(INPUT / "model" / "model.tar.gz"), str(folder))
    model = inference.model_fn(str(folder))
    rows = read_reviews(INPUT / "test")
    found = [each["label"] for each in inference.classify([row["text"] for row in rows], model)]

    hits = [row["label"] == found[at] for at, row in enumerate(rows)]
    right = sum(row["label"] == found[at] == "positive" for at, row in enumerate(rows))
    said, true = found.count("positive"), sum(row["label"] == "positive" for row in rows)
    measures = {"accuracy": share(hits), "f1": round(2 * right / (said + true), 4) if said + true else 0.0}
    for language in sorted({row.get("language") for row in rows} - {None}):
        measures[f"accuracy_{language}"] = share(hits[at] for at, row in enumerate(rows) if row["language"] == language)

    report = {name: {"value": value, "standard_deviation": "NaN"} for name, value in measures.items()}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "evaluation.json").write_text(json.dumps({"binary_classification_metrics": report}))
    print(f"{len(rows)} reviews:", ", ".join(f"{name} {value}" for name, value in measures.items()))


if __name__ == "__main__":
    main()
