"""The demo's patients: real measurements, and who of them plays which part.

The 569 patients of the Wisconsin breast-cancer measurements come with the project's template: 171 are the gate's fixed
test set and stay so. The other 398 are divided here: one half trains the first version; the other half is seen in
production only. Of these *live* patients a half gets its diagnoses reported while the demo runs (a retraining may learn
from them), the rest only afterwards: on those every version is judged, and none was trained on them.

The stream draws live patients again and again, each time measured a little differently. It is made from real rows; it
is no recording of a clinic.
"""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

LABEL = "diagnosis"
LIVE = 200
NOISE = 0.03  # standard deviation of a repeated measurement, relative
# 200 patients repeated are no sample of the 198 that train. This division is one in which the two look alike, so that
# what the monitor finds later is the change of a unit, and not whom chance put where.
DIVISION = 1127
SHIFTED, PIXELS_PER_UM2 = "mean_area", 100.0


class Sample(NamedTuple):
    """One measurement of a live patient. ``early``: the diagnosis is reported while the demo runs."""

    features: dict[str, float]
    truth: str
    early: bool
    shifted: bool

    def body(self) -> bytes:
        """The request that asks for a prediction."""
        return json.dumps({"instances": [self.features]}).encode()


class Stream:
    """Measurements as they arrive. ``pixels``: one of the two instruments reports areas in pixels."""

    def __init__(self, names: list[str], values: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", truth: list[str]):
        self._names, self._values, self._truth = names, values, truth
        self._rng = np.random.default_rng(5)
        self.pixels = False

    def next(self) -> Sample:
        """The next measurement."""
        patient = int(self._rng.integers(len(self._values)))
        row = self._values[patient] * (1 + NOISE * self._rng.standard_normal(len(self._names)))
        features = {name: float(f"{value:.6g}") for name, value in zip(self._names, row.tolist(), strict=True)}
        shifted = self.pixels and bool(self._rng.random() < 0.5)
        if shifted:
            features[SHIFTED] *= PIXELS_PER_UM2
        return Sample(features, self._truth[patient], patient % 2 == 0, shifted)


def divide(project: Path) -> tuple[int, Stream]:
    """Take the live patients out of the project's training table; gives how many rows are left, and the stream."""
    path = project / "data" / "patients.csv"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    where = header.index(LABEL)
    rng = np.random.default_rng(DIVISION)
    early: list[int] = []
    late: list[int] = []
    for diagnosis in ("benign", "malignant"):
        order = rng.permutation([number for number, row in enumerate(rows) if row[where] == diagnosis]).tolist()
        share = round(LIVE / len(rows) * len(order))
        early += order[: share // 2]
        late += order[share // 2 : share]
    # Early and late take turns, so that a patient's place says which of the two it is.
    live = [number for pair in zip(early, late, strict=False) for number in pair]
    with path.open("w", newline="") as file:
        kept = [row for number, row in enumerate(rows) if number not in {*early, *late}]
        csv.writer(file, lineterminator="\n").writerows([header, *kept])
    names = [name for name in header if name != LABEL]
    places = [header.index(name) for name in names]
    values = np.array([[float(rows[number][place]) for place in places] for number in live])
    return len(kept), Stream(names, values, [rows[number][where] for number in live])
