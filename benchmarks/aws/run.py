"""What the AWS front costs: microseconds of a call without its use case, seconds from ``loopline up`` to an answer.

make bench-aws
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from loopline.control import access, access_keys
from loopline.domain import sigv4
from loopline.domain.access import Permission
from loopline.fronts.aws import checks, identity, models, reading, services, writing
from loopline.fronts.aws.app import _One
from loopline.fronts.aws.call import Call, Operation
from loopline.testing.live import Platform
from loopline.testing.world import ADMIN, World

HOST = "127.0.0.1:8600"
BODY = {
    "ModelPackageGroupName": "churn",
    "ModelPackageDescription": "gradient boosting on the data of March",
    "ModelApprovalStatus": "PendingManualApproval",
    "InferenceSpecification": {
        "Containers": [
            {
                "Image": "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-scikit-learn:1.2-1-cpu-py3",
                "ModelDataUrl": "s3://models/churn/2026-03/output/model.tar.gz",
                "Environment": {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/code"},
            }
        ],
        "SupportedContentTypes": ["application/json", "text/csv"],
        "SupportedResponseMIMETypes": ["application/json"],
        "SupportedRealtimeInferenceInstanceTypes": ["ml.m5.large", "ml.m5.xlarge"],
    },
    "ModelMetrics": {
        "ModelQuality": {
            "Statistics": {"ContentType": "application/json", "S3Uri": "s3://models/churn/evaluation.json"}
        }
    },
    "CustomerMetadataProperties": {"commit": "9fce13f", "data": "march", "owner": "growth"},
    "Tags": [{"Key": "team", "Value": "growth"}, {"Key": "stage", "Value": "candidate"}],
}
RESULT = {"ModelPackageArn": "arn:aws:sagemaker:us-east-1:123456789012:model-package/churn/1"}


def microseconds(work: Callable[[], Any], rounds: int) -> float:
    """CPU time of a call: the median of ten batches."""
    work()
    batches = []
    for _ in range(10):
        started = time.process_time()
        for _ in range(rounds // 10):
            work()
        batches.append((time.process_time() - started) / (rounds // 10) * 1e6)
    return statistics.median(batches)


def front(folder: Path, rounds: int) -> None:
    """One signed CreateModelPackage through the front, with a handler that does nothing."""
    world = World(folder)
    access.bootstrap(world.ctx, f"http://{HOST}")
    key = access_keys.create(world.ctx, ADMIN, user="admin", name="bench")
    body = json.dumps(BODY).encode()
    headers = {
        "host": HOST,
        "x-amz-target": "SageMaker.CreateModelPackage",
        "content-type": "application/x-amz-json-1.1",
    }
    request = AWSRequest("POST", f"http://{HOST}/", data=body, headers=headers)
    SigV4Auth(Credentials(key["id"], key["secret_key"]), "sagemaker", "us-east-1").add_auth(request)
    head = sigv4.Request("POST", "/", "", [(name.lower(), value) for name, value in request.headers.items()])

    def nothing(_call: Call, _given: dict[str, Any]) -> dict[str, Any]:
        return RESULT

    table = {"sagemaker": {"CreateModelPackage": Operation(nothing, Permission.WRITE)}}

    def whole() -> None:
        one = _One(world.ctx, table, head)
        one.recognise()
        assert one.serve(body).status == 200

    claim = sigv4.read(head)
    assert claim is not None
    wire = models.service("sagemaker").wire("CreateModelPackage")
    assert wire is not None
    target = services.Target(wire, models.JSON)
    given = reading.read(target, head, body)
    parts: dict[str, Callable[[], Any]] = {
        "signature": lambda: identity.authenticate(
            world.ctx, head, sigv4.read(head), hashlib.sha256(body).hexdigest(), models.JSON
        ),
        "reading": lambda: reading.read(target, head, body),
        "checks": lambda: checks.check(wire.input, given, False),
        "writing": lambda: writing.write(wire, models.JSON, RESULT, "rq"),
        "all of the front": whole,
    }
    print(f"CreateModelPackage, {len(body)} bytes, CPU time of a call, µs:")
    for name, work in parts.items():
        print(f"  {name:18} {microseconds(work, rounds):7.0f}")
    world.close()


def first_answer(folder: Path) -> None:
    """From the start of ``loopline up`` on an empty directory to the answer to a client that has been waiting."""
    config = Config(retries={"total_max_attempts": 1})
    boto3.client("sts", region_name="us-east-1", endpoint_url="http://127.0.0.1:1")  # the client's own models are read
    platform = Platform(folder)
    started = time.perf_counter()
    platform.start()
    up = time.perf_counter() - started
    pair = json.loads((folder / "client.json").read_text())["access_key"]
    try:
        for service, ask in (("sts", "get_caller_identity"), ("sagemaker", "list_model_package_groups")):
            client = boto3.client(
                service,
                region_name="us-east-1",
                endpoint_url=platform.url,
                aws_access_key_id=pair["id"],
                aws_secret_access_key=pair["secret_key"],
                config=config,
            )
            before = time.perf_counter()
            getattr(client, ask)()
            took = time.perf_counter() - before
            print(f"  {service}.{ask}: first {took * 1e3:.0f} ms", end="")
            before = time.perf_counter()
            getattr(client, ask)()
            print(f", then {(time.perf_counter() - before) * 1e3:.1f} ms")
            if service == "sts":
                print(f"  up after {up:.2f} s, first AWS answer after {up + took:.2f} s")
    finally:
        platform.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loopline-bench-") as folder:
        front(Path(folder, "front"), given.rounds)
        first_answer(Path(folder, "up"))


if __name__ == "__main__":
    main()
