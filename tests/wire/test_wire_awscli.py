"""AWS's own command line, from an environment of its own (`make clients`), as a person uses it after `loopline env`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform, until

AWS = Path(__file__).resolve().parents[2] / ".clients" / "awscli" / "bin" / "aws"
pytestmark = pytest.mark.skipif(not AWS.exists(), reason="the AWS command line is not there: make clients")


@pytest.fixture(scope="module")
def environ(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `eval "$(loopline env)"` makes of a shell."""
    values = json.loads(platform.cli("env", "--json").stdout)
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home")), "AWS_PAGER": "", **values}


def aws(environ: dict[str, str], *argv: str, fails: bool = False) -> Any:
    """What a command printed, as JSON where it is; with ``fails`` what it said instead."""
    done = subprocess.run([str(AWS), *argv], env=environ, capture_output=True, text=True, timeout=60, check=False)
    if fails:
        assert done.returncode != 0, done.stdout
        return done.stderr
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


def test_the_caller_is_known(environ: dict[str, str]) -> None:
    said = aws(environ, "sts", "get-caller-identity")

    assert said["Arn"] == "arn:aws:sts::123456789012:assumed-role/loopline-admin/admin"


def test_create_describe_list(platform: Platform, environ: dict[str, str]) -> None:
    name = "--model-package-group-name"
    aws(environ, "sagemaker", "create-model-package-group", name, "churn", "--tags", "Key=team,Value=growth")

    shown = aws(environ, "sagemaker", "describe-model-package-group", name, "churn")
    listed = aws(environ, "sagemaker", "list-model-package-groups")["ModelPackageGroupSummaryList"]

    assert shown["ModelPackageGroupArn"].endswith(":model-package-group/churn")
    assert [group["ModelPackageGroupName"] for group in listed] == ["churn"]
    assert "churn" in {model["name"] for model in platform.call("GET", "/api/models")["items"]}
    assert "churn-2" in aws(environ, "sagemaker", "describe-model-package-group", name, "churn-2", fails=True)


def test_objects_go_up_and_come_down(platform: Platform, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small.csv").write_text("a,b\n1,2\n")
    (tmp_path / "data" / "large.bin").write_bytes(os.urandom(9 << 20))  # in parts

    aws(environ, "s3", "mb", "s3://landing")
    aws(environ, "s3", "sync", str(tmp_path / "data"), "s3://landing/raw", "--no-progress")
    aws(environ, "s3", "cp", "s3://landing/raw/large.bin", str(tmp_path / "back.bin"), "--no-progress")

    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "data" / "large.bin").read_bytes()
    assert platform.cli("objects", "get", "s3://landing/raw/small.csv").stdout == "a,b\n1,2\n"
    assert "small.csv" in aws(environ, "s3", "ls", "s3://landing/raw/")


def test_a_metric_and_its_alarm(environ: dict[str, str]) -> None:
    aws(environ, "cloudwatch", "put-metric-data", "--namespace", "Shop", "--metric-name", "Orders", "--value", "3")
    alarm = ["--alarm-name", "few", "--namespace", "Shop", "--metric-name", "Orders", "--statistic", "Sum"]
    rule = ["--period", "60", "--evaluation-periods", "1", "--threshold", "1"]
    aws(environ, "cloudwatch", "put-metric-alarm", *alarm, *rule, "--comparison-operator", "LessThanThreshold")

    found = aws(environ, "cloudwatch", "describe-alarms")["MetricAlarms"]
    assert [(each["AlarmName"], each["Threshold"]) for each in found] == [("few", 1.0)]


def test_a_model_answers(platform: Platform, environ: dict[str, str], archive: bytes, tmp_path: Path) -> None:
    platform.ask("PUT", "/api/images/plain", {"requirements": ""})
    (tmp_path / "model.tar.gz").write_bytes(archive)
    aws(environ, "s3", "mb", "s3://words")
    aws(environ, "s3", "cp", str(tmp_path / "model.tar.gz"), "s3://words/model.tar.gz", "--no-progress")
    container = "Image=123456789012.dkr.ecr.us-east-1.amazonaws.com/plain:1,ModelDataUrl=s3://words/model.tar.gz"
    role = "arn:aws:iam::123456789012:role/loopline-editor"
    create = ["create-model", "--model-name", "words", "--primary-container", container, "--execution-role-arn", role]
    aws(environ, "sagemaker", *create)
    variant = "VariantName=all,ModelName=words,InitialInstanceCount=1,InstanceType=ml.m5.large"
    config = ["--endpoint-config-name", "words"]
    aws(environ, "sagemaker", "create-endpoint-config", *config, "--production-variants", variant)
    aws(environ, "sagemaker", "create-endpoint", "--endpoint-name", "words", *config)

    def serves() -> bool:
        return bool(
            aws(environ, "sagemaker", "describe-endpoint", "--endpoint-name", "words")["EndpointStatus"] == "InService"
        )

    until(serves, "the endpoint is in service", 90.0, 1.0)
    (tmp_path / "asked").write_text("good")
    asked = ["--endpoint-name", "words", "--content-type", "text/plain", "--accept", "text/plain"]
    body = ["--body", f"fileb://{tmp_path / 'asked'}", str(tmp_path / "said")]
    said = aws(environ, "sagemaker-runtime", "invoke-endpoint", *asked, *body)

    assert (tmp_path / "said").read_text() == "good is what it says"
    assert said["InvokedProductionVariant"] == "all"
