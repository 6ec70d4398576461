"""Batch transform, asked by boto3: a model that a training made answers the objects of a bucket."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, packed, until

Client = Callable[..., Any]
ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"
BUCKET = "wire-transform"
SCRIPT = """
import os, pathlib

def model_fn(model_dir):
    return float(pathlib.Path(model_dir, "slope").read_text())

def predict_fn(rows, slope):
    return [[slope * float(row[0]) + float(os.environ.get("OFFSET", 0))] for row in rows]
"""


@pytest.fixture(scope="module")
def sagemaker(platform: Platform, client: Client) -> Any:
    platform.call("PUT", "/api/images/plain", {"requirements": ""})
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=packed({"slope": "3", "code/inference.py": SCRIPT}))
    s3.put_object(Bucket=BUCKET, Key="given/one.csv", Body=b"1,a\n2,b\n")
    s3.put_object(Bucket=BUCKET, Key="given/deep/two.csv", Body=b"5,c\n")
    made = client("sagemaker")
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
    made.create_model(ModelName="triple", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    return made


def transform(sagemaker: Any, name: str, meanwhile: Callable[[], None] | None = None, **more: Any) -> dict[str, Any]:
    """A job, once it is over; ``meanwhile``: what is done when it was begun."""
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/given/"}}
    sagemaker.create_transform_job(
        TransformJobName=name,
        TransformInput={"DataSource": source, "ContentType": "text/csv", "SplitType": "Line"},
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/{name}", "Accept": "text/csv", "AssembleWith": "Line"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
        **{"ModelName": "triple", **more},
    )
    if meanwhile is not None:
        meanwhile()

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_transform_job(TransformJobName=name)
        return found if found["TransformJobStatus"] in ("Completed", "Failed", "Stopped") else None

    return until(look, f"the transform {name} is over", 90)


def body(client: Client, key: str) -> bytes:
    found: bytes = client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return found


def test_a_model_answers_objects_by_their_names(platform: Platform, client: Client, sagemaker: Any) -> None:
    found = transform(sagemaker, "plain", Environment={"OFFSET": "0.5"})

    assert (found["TransformJobStatus"], found.get("FailureReason")) == ("Completed", None)
    assert body(client, "plain/one.csv.out") == b"3.5\n6.5\n"
    assert body(client, "plain/deep/two.csv.out") == b"15.5\n"
    listed = sagemaker.list_transform_jobs(NameContains="plain")["TransformJobSummaries"]
    assert [(row["TransformJobName"], row["TransformJobStatus"]) for row in listed] == [("plain", "Completed")]
    native = platform.call("GET", "/api/scripts/transform/plain")
    run = platform.call("GET", f"/api/runs/{native['run']}")
    assert [given["asset"] for given in run["inputs"]] == [f"s3://{BUCKET}/given/", "triple"]


def test_answers_are_joined_with_what_was_asked(client: Client, sagemaker: Any) -> None:
    found = transform(
        sagemaker,
        "joined",
        BatchStrategy="SingleRecord",
        DataProcessing={"InputFilter": "$[0]", "JoinSource": "Input", "OutputFilter": "$[1:]"},
    )

    assert found["TransformJobStatus"] == "Completed", found
    assert body(client, "joined/one.csv.out") == b"a,3.0\nb,6.0\n"


def test_a_model_that_fails_is_the_reason(sagemaker: Any) -> None:
    found = transform(sagemaker, "broken", Environment={"OFFSET": "none"})

    assert found["TransformJobStatus"] == "Failed"
    assert "none" in found["FailureReason"]


def test_a_stopped_transform_writes_nothing(platform: Platform, client: Client, sagemaker: Any) -> None:
    waits = "import time\ndef model_fn(folder):\n    print('waits', flush=True)\n    while True: time.sleep(0.05)\n"
    client("s3").put_object(Bucket=BUCKET, Key="waits.tar.gz", Body=packed({"code/inference.py": waits}))
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/waits.tar.gz"}
    sagemaker.create_model(ModelName="waits", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    log = "/api/scripts/transform/stopped/log"

    def stop() -> None:
        until(lambda: "waits" in platform.call("GET", log)["text"], "it has begun", 60)
        sagemaker.stop_transform_job(TransformJobName="stopped")

    found = transform(sagemaker, "stopped", ModelName="waits", meanwhile=stop)

    assert found["TransformJobStatus"] == "Stopped"
    assert "Contents" not in client("s3").list_objects_v2(Bucket=BUCKET, Prefix="stopped/")
    assert platform.call("GET", "/api/scripts/transform/stopped")["status"] == "Stopped"


def test_what_is_not_there_is_said(sagemaker: Any) -> None:
    with pytest.raises(ClientError, match="Could not find model"):
        transform(sagemaker, "nobody", ModelName="nobody")
    with pytest.raises(ClientError, match="Could not find job to describe with name never"):
        sagemaker.describe_transform_job(TransformJobName="never")
