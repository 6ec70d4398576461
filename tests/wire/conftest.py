"""Real clients against a real installation: AWS's own, over the public port."""

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
