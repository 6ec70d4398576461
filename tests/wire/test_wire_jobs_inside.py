"""What a program asks of the installation that runs it: boto3 in a job, with a key of the job's role and no more."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, packed, until

Client = Callable[..., Any]
ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/inside:1"
BUCKET = "wire-inside"
STATES = ("Completed", "Failed", "Stopped")

ASK = """
import json, os, pathlib, sys
import boto3
from botocore.exceptions import ClientError

s3, sts, iam = boto3.client("s3"), boto3.client("sts"), boto3.client("iam")
found = {"arn": sts.get_caller_identity()["Arn"], "region": s3.meta.region_name, "refused": []}
found["read"] = s3.get_object(Bucket="wire-inside", Key="rows.csv")["Body"].read().decode()
try:
    s3.put_object(Bucket="wire-inside", Key=f"from/{os.environ['NAME']}", Body=b"mine")
except ClientError:
    found["refused"].append("put")
try:
    iam.create_role(
        RoleName="Up", AssumeRolePolicyDocument="{}", Tags=[{"Key": "loopline:role", "Value": "approver"}]
    )
except ClientError:
    found["refused"].append("role")
found["key"] = {
    "id": os.environ["AWS_ACCESS_KEY_ID"],
    "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"],
    "token": os.environ["AWS_SESSION_TOKEN"],
}
taken = sts.get_session_token()["Credentials"]
found["taken"] = {
    "id": taken["AccessKeyId"], "secret_key": taken["SecretAccessKey"], "token": taken["SessionToken"]
}
print("the secret is", os.environ["AWS_SECRET_ACCESS_KEY"])
print("and the token", os.environ["AWS_SESSION_TOKEN"], end="")
pathlib.Path(sys.argv[1], "found.json").write_text(json.dumps(found))
"""
ANSWER = """
import boto3

def model_fn(model_dir):
    return boto3.client("sts").get_caller_identity()["Arn"]

def predict_fn(rows, arn):
    return [[arn] for row in rows]
"""


@pytest.fixture(scope="module", autouse=True)
def ground(platform: Platform, client: Client) -> None:
    """A bucket, an image with boto3, and two roles."""
    platform.call("PUT", "/api/images/inside", {"requirements": f"boto3=={boto3.__version__}\n"})
    platform.call("POST", "/api/role-aliases", {"name": "trainer", "role": "editor"})
    platform.call("POST", "/api/role-aliases", {"name": "reader", "role": "viewer"})
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key="rows.csv", Body=b"1\n2\n")
    s3.put_object(Bucket=BUCKET, Key="ask.py", Body=ASK.encode())


def processed(client: Client, name: str, role: str, *, key: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a processing job with a role left; an empty dict when it failed."""
    sagemaker = client("sagemaker", key)
    folder = "/opt/ml/processing"
    code = {"S3Uri": f"s3://{BUCKET}/ask.py", "LocalPath": f"{folder}/input"}
    left = {"S3Uri": f"s3://{BUCKET}/{name}", "LocalPath": f"{folder}/output", "S3UploadMode": "EndOfJob"}
    sagemaker.create_processing_job(
        ProcessingJobName=name,
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/{role}",
        AppSpecification={
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["python3", f"{folder}/input/ask.py", f"{folder}/output"],
        },
        Environment={"NAME": name},
        ProcessingInputs=[{"InputName": "code", "S3Input": {**code, "S3DataType": "S3Prefix", "S3InputMode": "File"}}],
        ProcessingOutputConfig={"Outputs": [{"OutputName": "found", "S3Output": left}]},
        ProcessingResources={
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 10}
        },
    )

    def look() -> str | None:
        status = sagemaker.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"]
        return status if status in STATES else None

    if until(look, f"{name} is over", 120) == "Failed":
        return {}
    found: dict[str, Any] = json.loads(client("s3").get_object(Bucket=BUCKET, Key=f"{name}/found.json")["Body"].read())
    return found


def printed(platform: Platform, name: str) -> str:
    return str(platform.call("GET", f"/api/scripts/processing/{name}/log")["text"])


def test_a_program_has_its_roles_key_while_it_runs(platform: Platform, client: Client) -> None:
    found = processed(client, "ask-1", "trainer")

    assert found["arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/trainer/ask-1"
    assert (found["region"], found["read"], found["refused"]) == ("us-east-1", "1\n2\n", ["role"])
    assert client("s3").get_object(Bucket=BUCKET, Key="from/ask-1")["Body"].read() == b"mine"
    for ended in (found["key"], found["taken"]):
        with pytest.raises(ClientError, match="InvalidClientTokenId"):
            client("sts", ended).get_caller_identity()
    listed = [row["id"] for row in platform.call("GET", "/api/access-keys")["items"] if not row["revoked_at"]]
    assert found["key"]["id"] not in listed
    text = printed(platform, "ask-1")
    assert "the secret is *****\nand the token *****" in text
    assert found["key"]["secret_key"] not in text and found["key"]["token"] not in text
    job = platform.call("GET", "/api/scripts/processing/ask-1")["job"]
    assert found["key"]["secret_key"] not in json.dumps(platform.call("GET", f"/api/jobs/{job}"))


def test_a_program_may_no_more_than_its_role(client: Client) -> None:
    assert processed(client, "ask-2", "reader")["refused"] == ["put", "role"]


def test_a_program_may_no_more_than_who_began_it(platform: Platform, client: Client) -> None:
    editor = platform.call("POST", "/api/access-keys", {"name": "editor", "role": "editor"})

    found = processed(client, "ask-3", "loopline-admin", key=editor)

    assert found["refused"] == ["role"]
    warnings = platform.call("GET", "/api/scripts/processing/ask-3")["warnings"]
    assert warnings == ["loopline-admin is admin here, and who began this is editor: the program's key is editor's"]


def test_a_role_that_is_not_known_gives_no_key(platform: Platform, client: Client) -> None:
    assert processed(client, "ask-4", "Nobody") == {}

    shown = platform.call("GET", "/api/scripts/processing/ask-4")
    assert "`loopline roles create Nobody --as editor`" in shown["warnings"][0]
    assert "NoRegionError" in printed(platform, "ask-4") or "NoCredentialsError" in printed(platform, "ask-4")


def test_a_transform_has_the_role_of_its_model(client: Client) -> None:
    s3, sagemaker = client("s3"), client("sagemaker")
    s3.put_object(Bucket=BUCKET, Key="model.tar.gz", Body=packed({"code/inference.py": ANSWER}))
    s3.put_object(Bucket=BUCKET, Key="given/one.csv", Body=b"1\n")
    sagemaker.create_model(
        ModelName="who",
        PrimaryContainer={"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"},
        ExecutionRoleArn=f"arn:aws:iam::{ACCOUNT}:role/reader",
    )
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/given/"}}
    sagemaker.create_transform_job(
        TransformJobName="asks",
        ModelName="who",
        TransformInput={"DataSource": source, "ContentType": "text/csv"},
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/told", "Accept": "text/csv"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
    )

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = sagemaker.describe_transform_job(TransformJobName="asks")
        return found if found["TransformJobStatus"] in STATES else None

    over = until(look, "the transform is over", 120)

    assert over["TransformJobStatus"] == "Completed", over
    told = s3.get_object(Bucket=BUCKET, Key="told/one.csv.out")["Body"].read().decode()
    assert told.strip() == f"arn:aws:sts::{ACCOUNT}:assumed-role/reader/asks"
