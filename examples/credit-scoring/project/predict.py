"""How a version answers: for each applicant the score, the probability that the loan is not paid back."""

from pathlib import Path

import joblib
import pandas


def load(model_dir):
    """The model that the step `fit` returned."""
    return joblib.load(next(Path(model_dir).glob("*.joblib")))


def predict(model, batch):
    """A score for each applicant, and the class that the gate and the monitor look at."""
    table = pandas.DataFrame(batch, columns=model.feature_names_in_)
    return [{"prediction": int(score >= 0.5), "score": score} for score in model.predict_proba(table)[:, 1].tolist()]
