"""Train a classifier of short reviews, in script mode: what SageMaker's scikit-learn container starts.

Channels ``train`` and ``test`` hold CSV files with the columns ``label`` and ``text``. Runs of one to four characters
are the features, so that no language needs a word splitter. ``model.joblib`` goes into the model's folder; accuracy and
F1 on the test channel are printed for the metric definitions of the estimator.
"""

import argparse
import csv
import os
import random
from pathlib import Path

import joblib
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline


def read_reviews(folder):
    """(texts, labels) of every CSV file in a channel."""
    rows = []
    for path in sorted(Path(folder).glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    if not rows:
        raise SystemExit(f"there are no reviews in {folder}: the channel needs CSV files with label and text")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_train_samples", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=1.0)
    parser.add_argument("--train", default=os.environ.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--test", default=os.environ.get("SM_CHANNEL_TEST"))
    parser.add_argument("--model_dir", default=os.environ.get("SM_MODEL_DIR"))
    return parser.parse_args()


def main():
    args = parse_args()
    texts, labels = read_reviews(args.train)
    chosen = random.Random(0).sample(range(len(texts)), min(args.num_train_samples, len(texts)))
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True),
        SGDClassifier(
            loss="log_loss",
            max_iter=args.epochs,
            tol=None,
            learning_rate="constant",
            eta0=args.learning_rate,
            average=True,
            random_state=0,
        ),
    )
    model.fit([texts[at] for at in chosen], [labels[at] for at in chosen])
    joblib.dump(model, Path(args.model_dir, "model.joblib"))

    test_texts, test_labels = read_reviews(args.test)
    found = model.predict(test_texts)
    print(f"train_samples={len(chosen)};")
    print(f"eval_accuracy={accuracy_score(test_labels, found):.4f};")
    print(f"eval_f1={f1_score(test_labels, found, pos_label='positive'):.4f};")


if __name__ == "__main__":
    main()
