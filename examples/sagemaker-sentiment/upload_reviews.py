"""Put reviews where jobs find them: PREFIX/train/reviews.csv and PREFIX/test/reviews.csv in the default bucket.

    python upload_reviews.py                           the reviews of this example
    python upload_reviews.py --reviews FOLDER          others: FOLDER/train.csv and FOLDER/test.csv with label and text
    IMDB_DIR=aclImdb python upload_reviews.py          the IMDb reviews: aclImdb/train/pos/*.txt and so on

The last line is the S3 prefix, which the pipeline takes as its parameter ReviewsS3Uri.
"""

import argparse
import csv
import io
import os
from pathlib import Path

import sagemaker
from sagemaker.s3 import S3Uploader

HERE = Path(__file__).resolve().parent
IMDB_LABELS = {"pos": "positive", "neg": "negative"}


def imdb_csv(folder, part):
    """One part of the IMDb folders as CSV."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(["label", "language", "text"])
    for name, label in IMDB_LABELS.items():
        paths = sorted(Path(folder, part, name).glob("*.txt"))
        if not paths:
            raise SystemExit(
                f"{Path(folder, part, name)} has no *.txt: IMDB_DIR is the folder that holds train and test"
            )
        table.writerows([label, "en", path.read_text(encoding="utf-8")] for path in paths)
    return written.getvalue()


def upload_reviews(session, folder=None, name=None):
    """Upload both parts; gives the S3 prefix. ``folder``: None for IMDB_DIR, or the reviews of this example."""
    imdb = os.environ.get("IMDB_DIR") if folder is None else None
    folder = Path(folder or HERE / "reviews")
    prefix = f"s3://{session.default_bucket()}/sentiment/{name or ('imdb' if imdb else 'reviews')}"
    for part in ("train", "test"):
        text = imdb_csv(imdb, part) if imdb else (folder / f"{part}.csv").read_text(encoding="utf-8")
        S3Uploader.upload_string_as_file_body(text, f"{prefix}/{part}/reviews.csv", sagemaker_session=session)
    return prefix


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", help="a folder with train.csv and test.csv")
    parser.add_argument("--name", help="the last part of the prefix")
    given = parser.parse_args()
    print(upload_reviews(sagemaker.Session(), given.reviews, given.name))
