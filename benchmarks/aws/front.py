"""The AWS front by itself, in this process: what each part of a call costs, with a handler that does nothing."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from loopline.control import access, access_keys
from loopline.domain import sigv4
from loopline.domain.access import Permission
from loopline.fronts.aws import checks, identity, models, reading, services, writing
from loopline.fronts.aws.app import _One
from loopline.fronts.aws.call import Call, Operation
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


def parts(folder: Path, rounds: int) -> dict[str, float]:
    """Microseconds of processor time for each part of one signed CreateModelPackage, and for all of the front."""
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
    work: dict[str, Callable[[], Any]] = {
        "signature": lambda: identity.authenticate(
            world.ctx, head, sigv4.read(head), hashlib.sha256(body).hexdigest(), models.JSON
        ),
        "reading": lambda: reading.read(target, head, body),
        "checks": lambda: checks.check(wire.input, given, False),
        "writing": lambda: writing.write(wire, models.JSON, RESULT, "rq"),
        "all of the front": whole,
    }
    found = {name: microseconds(each, rounds) for name, each in work.items()}
    world.close()
    return found
