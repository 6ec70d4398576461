"""The AWS SDK for JavaScript, from an environment of its own (`make clients`): a round that ends with a prediction."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loopline.testing.live import Platform

HERE = Path(__file__).resolve().parent / "clients" / "javascript"
CLIENT = Path(__file__).resolve().parents[2] / ".clients" / "javascript"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not (CLIENT / "node_modules").exists(), reason="node or the AWS SDK is not there: make clients"
)


def test_create_describe_list_invoke(platform: Platform, archive: bytes, tmp_path: Path) -> None:
    platform.ask("PUT", "/api/images/plain", {"requirements": ""})
    (tmp_path / "model.tar.gz").write_bytes(archive)
    program = CLIENT / "round.js"  # packages are found from where a program stands
    program.write_text((HERE / "round.js").read_text())
    environ = {**json.loads(platform.cli("env", "--json").stdout), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    done = subprocess.run(
        [str(NODE), str(program), str(tmp_path / "model.tar.gz")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["arn"] == "arn:aws:sts::123456789012:assumed-role/loopline-admin/admin"
    assert (said["bytes"], said["metadata"], said["missing"]) == (len(archive), {"by": "javascript"}, "NoSuchKey")
    assert said["group"].endswith(":model-package-group/words")
    assert (said["version"], said["listed"]) == ([1, "Approved", True], [1])
    assert (said["status"], said["answer"]) == ("InService", ["good is what it says", "all"])
    assert said["unknown"][0] == "ValidationException" and "Could not find" in said["unknown"][1]
    version = platform.call("GET", "/api/models/words/versions")["items"][0]
    assert version["status"] == "Approved"
