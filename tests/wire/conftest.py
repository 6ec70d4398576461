"""Real clients against a real installation: AWS's own, over the public port."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from loopline.testing.live import Platform, packed, until

REGION = "us-east-1"
Client = Callable[..., Any]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation for all tests of a file."""
    installation = Platform(tmp_path_factory.mktemp("wire") / "loopline")
    try:
        installation.start()
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def key(platform: Platform) -> dict[str, Any]:
    """An access key of the administrator."""
    made: dict[str, Any] = platform.call("POST", "/api/access-keys", {"name": "wire"})
    return made


@pytest.fixture(scope="module")
def client(platform: Platform, key: dict[str, Any]) -> Client:
    """``client("s3")``: boto3's client of a service, with the administrator's key unless another is given."""

    def make(service: str, given: dict[str, Any] | None = None, **options: Any) -> Any:
        used = key if given is None else given
        once = Config(retries={"total_max_attempts": 1}, **options)
        return boto3.client(
            service,
            endpoint_url=platform.url,
            region_name=REGION,
            aws_access_key_id=used["id"],
            aws_secret_access_key=used["secret_key"],
            aws_session_token=used.get("token"),
            config=once,
        )

    return make


@pytest.fixture(scope="module")
def sagemaker(client: Client) -> Any:
    """boto3's client of SageMaker."""
    return client("sagemaker")


@pytest.fixture(scope="module")
def shell(platform: Platform) -> dict[str, str]:
    """The environment of a script after ``eval "$(loopline env)"``; the image ``plain`` is the standard library."""
    platform.call("PUT", "/api/images/plain", {"requirements": ""})
    return {"PATH": os.environ["PATH"], **json.loads(platform.cli("env", "--json").stdout)}


RunScript = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run_script(shell: dict[str, str]) -> RunScript:
    """``run_script(python, folder / "run.py", seconds)``: a person's script, which has to end well."""

    def run(python: Path, script: Path, seconds: float, **environ: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [str(python), script.name],
            cwd=script.parent,
            env={**shell, "HOME": str(script.parent), **environ},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
        return done

    return run


SAYS = """
def model_fn(model_dir):
    return open(model_dir + "/says.txt").read()

def input_fn(data, content_type):
    return data if isinstance(data, str) else data.decode()

def predict_fn(data, model):
    return data + " " + model

def output_fn(said, accept):
    return said, accept
"""


@pytest.fixture(scope="session")
def archive() -> bytes:
    """A model.tar.gz whose script answers ``TEXT is what it says``."""
    return packed({"says.txt": "is what it says", "code/inference.py": SAYS}, compressed=True)


ACCOUNT = "123456789012"
LINE = """
import json, os, pathlib, time

def model_fn(model_dir):
    return json.loads((pathlib.Path(model_dir) / "line.json").read_text())

def transform_fn(model, data, content_type, accept, context):
    rows = json.loads(data)["rows"]
    if rows == "fail":
        time.sleep(float(os.environ.get("SLOW", "0")))
        raise RuntimeError("no such row")
    if rows == "status":
        context.set_response_status(422, "not a row")
    said = context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes")
    if said:
        context.set_response_header(0, "X-Amzn-SageMaker-Custom-Attributes", f"heard {said}")
    return json.dumps({"values": [model["slope"] * row for row in rows] if rows != "status" else []}), accept
"""


class Hosting:
    """Models whose answer is ``slope * row``, and endpoints of them, made by boto3; names say the slope: ``x2``."""

    image = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"
    role = f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"
    bucket = "hosted"

    def __init__(self, client: Client, platform: Platform) -> None:
        platform.ask("PUT", "/api/images/plain", {"requirements": ""})
        self.sagemaker, self.runtime, self.s3 = client("sagemaker"), client("sagemaker-runtime"), client("s3")
        self.s3.create_bucket(Bucket=self.bucket)

    def put(self, key: str, slope: float) -> str:
        """A model.tar.gz as an object; gives its address."""
        files = {"line.json": json.dumps({"slope": slope}), "code/inference.py": LINE}
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=packed(files, compressed=True))
        return f"s3://{self.bucket}/{key}"

    def configure(self, *slopes: int, instances: int = 1, variables: dict[str, str] | None = None, **more: Any) -> None:
        """A model and a configuration ``x<slope>`` for each slope."""
        for slope in slopes:
            data = self.put(f"x{slope}/model.tar.gz", float(slope))
            container = {"Image": self.image, "ModelDataUrl": data, "Environment": variables or {}}
            self.sagemaker.create_model(ModelName=f"x{slope}", PrimaryContainer=container, ExecutionRoleArn=self.role)
            self.configured(f"x{slope}", f"x{slope}", instances, **more)

    def configured(self, name: str, model: str, instances: int = 1, **more: Any) -> None:
        """A configuration of one model."""
        variant = {"VariantName": "AllTraffic", "ModelName": model, "InstanceType": "ml.m5.large"}
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[{**variant, "InitialInstanceCount": instances}], **more
        )

    def start(self, endpoint: str, config: str) -> None:
        """An endpoint, once it serves."""
        self.sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=config)
        self.in_service(endpoint)

    def update(self, endpoint: str, config: str, **deployment: Any) -> None:
        """Begin an update; ``deployment`` is the DeploymentConfig."""
        self.sagemaker.update_endpoint(EndpointName=endpoint, EndpointConfigName=config, DeploymentConfig=deployment)

    def status(self, endpoint: str) -> str:
        """What DescribeEndpoint says."""
        return str(self.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"])

    def in_service(self, endpoint: str) -> dict[str, Any]:
        """The endpoint once it serves and nothing goes on."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=endpoint)
            assert found["EndpointStatus"] != "Failed", found["FailureReason"]
            return found if found["EndpointStatus"] == "InService" else None

        return until(look, f"the endpoint {endpoint} is in service", 120.0)

    def ask(self, endpoint: str, rows: Any, **more: Any) -> dict[str, Any]:
        """An answer, with its body read."""
        body = json.dumps({"rows": rows}).encode()
        given = {
            "EndpointName": endpoint,
            "Body": body,
            "ContentType": "application/json",
            "Accept": "application/json",
        }
        answer: dict[str, Any] = self.runtime.invoke_endpoint(**given, **more)
        return {**answer, "values": json.loads(answer["Body"].read())["values"]}

    def slope(self, endpoint: str, **more: Any) -> float:
        """The slope of the model that answers."""
        return float(self.ask(endpoint, [1.0], **more)["values"][0])


@pytest.fixture(scope="module")
def hosting(client: Client, platform: Platform) -> Hosting:
    """Endpoints by boto3."""
    return Hosting(client, platform)
