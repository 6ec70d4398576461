"""Callers of the endpoint: held-out reviews, whose labels are known. The last line is JSON: what they were answered.

python demo/client/traffic.py                            every review of reviews/test.csv once
python demo/client/traffic.py --seconds 10               over and over
python demo/client/traffic.py --seconds 10 --broken 0.5  half of them from a caller who misspells a key
"""

import argparse
import csv
import itertools
import json
import threading
import time
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

CALLERS = 4
HERE = Path(__file__).resolve().parents[2]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--reviews", type=Path, default=HERE / "reviews" / "test.csv")
parser.add_argument("--seconds", type=float)
parser.add_argument("--broken", type=float, default=0.0, help="the share of requests that no model can answer")
args = parser.parse_args()

runtime = boto3.client("sagemaker-runtime")
with args.reviews.open(newline="", encoding="utf-8") as file:
    reviews = list(csv.DictReader(file))
queue = enumerate(itertools.cycle(reviews) if args.seconds else reviews)
end = time.monotonic() + args.seconds if args.seconds else float("inf")
turn = threading.Lock()
answers = []  # (label, truth, milliseconds); the label is None where the model failed
errors = []


def ask(number, review):
    broken = (number * args.broken) % 1 + args.broken >= 1 - 1e-9
    body = {"input" if broken else "inputs": review["text"]}
    began = time.perf_counter()
    try:
        response = runtime.invoke_endpoint(
            EndpointName="mlops-sentiment-endpoint",
            ContentType="application/json",
            Body=json.dumps(body),
        )
        label = json.loads(response["Body"].read())[0]["label"]
    except ClientError as error:
        label = None
        errors.append(error.response["Error"]["Code"])
    answers.append((label, review["label"], (time.perf_counter() - began) * 1000))


def call():
    while time.monotonic() < end:
        with turn:
            found = next(queue, None)
        if found is None:
            return
        ask(*found)


began = time.monotonic()
callers = [threading.Thread(target=call) for _ in range(CALLERS)]
for each in callers:
    each.start()
for each in callers:
    each.join()
seconds = time.monotonic() - began
answered = [answer for answer in answers if answer[0] is not None]
right = sum(label == truth for label, truth, _ in answered)
took = sorted(milliseconds for _, _, milliseconds in answered) or [0.0]
print(
    json.dumps(
        {
            "requests": len(answers),
            "failed": len(errors),
            "errors": sorted(set(errors)),
            "right": right,
            "accuracy": round(right / max(1, len(answered)), 4),
            "per_second": round(len(answers) / seconds),
            "p50_ms": round(took[len(took) // 2], 1),
            "p99_ms": round(took[int(len(took) * 0.99)], 1),
        }
    )
)
