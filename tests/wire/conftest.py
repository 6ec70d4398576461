"""Real clients against a real installation: AWS's own, over the public port."""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from loopline.testing.live import Platform

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
        config = Config(retries={"total_max_attempts": 1}, **options)
        return boto3.client(
            service,
            endpoint_url=platform.url,
            region_name=REGION,
            aws_access_key_id=used["id"],
            aws_secret_access_key=used["secret_key"],
            aws_session_token=used.get("token"),
            config=config,
        )

    return make


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
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in (("says.txt", "is what it says"), ("code/inference.py", SAYS)):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()
