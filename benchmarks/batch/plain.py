"""The script that people write in place of a batch: Polars reads, the model predicts, Polars writes.

    python plain.py MODEL.joblib TABLE.csv OUTPUT.csv

Prints its seconds as JSON; loading libraries and model is told apart from the work.
"""

import json
import sys
import time

began = time.perf_counter()

import joblib  # noqa: E402
import polars  # noqa: E402

model = joblib.load(sys.argv[1])
loaded = time.perf_counter()
table = polars.read_csv(sys.argv[2])
probabilities = model.predict_proba(table.drop("id").to_numpy())
columns = {"id": table["id"], "prediction": model.classes_[probabilities.argmax(axis=1)]}
columns |= {f"probabilities.{name}": probabilities[:, place] for place, name in enumerate(model.classes_)}
polars.DataFrame(columns).write_csv(sys.argv[3])
ended = time.perf_counter()
print(json.dumps({"load_seconds": loaded - began, "work_seconds": ended - loaded, "rows": table.height}))
