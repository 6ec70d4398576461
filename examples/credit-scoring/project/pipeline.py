"""From a table of applicants to a registered model: `loopline run --wait`, or `python pipeline.py` here and now."""

import pandas
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from loopline import asset, fail, log_baseline, otherwise, pipeline, register, step, when

LABEL = "defaulted"
TEXTS = ["housing", "purpose"]


@step(outputs=["train", "valid"])
def prepare(table: pandas.DataFrame):
    """Hold a quarter back, to judge by."""
    return train_test_split(table, test_size=0.25, random_state=7, stratify=table[LABEL])


@step
def fit(train: pandas.DataFrame, strength: float):
    """Train on what `prepare` chose."""
    features = train.drop(columns=LABEL)
    numbers = [name for name in features if name not in TEXTS]
    table = make_column_transformer(
        (StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore"), TEXTS), verbose_feature_names_out=False
    )
    model = make_pipeline(table, LogisticRegression(C=strength, max_iter=1000))
    model.fit(features, train[LABEL])
    log_baseline(features, score=model.predict_proba(features)[:, 1])
    return model


@step
def evaluate(model, valid: pandas.DataFrame):
    """Judge on the rows that were held back."""
    scores = model.predict_proba(valid.drop(columns=LABEL))[:, 1]
    return {"roc_auc": float(roc_auc_score(valid[LABEL], scores))}


@pipeline
def training(strength: float = 1.0, enough: float = 0.7):
    """Train, evaluate, and register what is good enough."""
    train, valid = prepare(asset("applicants"))
    model = fit(train, strength)
    report = evaluate(model, valid)
    with when(report["roc_auc"] >= enough):
        register(model, metrics=report)
    with otherwise():
        fail("the model tells good from bad applicants too badly")


if __name__ == "__main__":
    training.run()
